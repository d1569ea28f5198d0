"""mypy accepts every public call, and refuses mistakes (`public_calls.py`)."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CALLS = HERE / "public_calls.py"
CLASSES = json.loads((HERE.parent / "api" / "manifest.json").read_text())["classes"]


@pytest.mark.slow
def test_mypy_is_content():
    """Unused `type: ignore` comments are errors, so the mistakes have to be found."""
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(CALLS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_call_is_looked_at(name):
    used = set()
    for node in ast.walk(ast.parse(CALLS.read_text())):
        match node:
            case ast.Attribute(attr=found) | ast.Name(id=found) | ast.keyword(arg=found):
                used.add(found)
            case ast.FunctionDef(name=found):
                used.add(found)
    assert name in used
    assert set(CLASSES[name].get("methods", {})) <= used
