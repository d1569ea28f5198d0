"""The programs of the tutorial of the first generation run, and print what it says."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST_GENERATION = (ROOT / "docs" / "tutorial" / "first-generation.md").read_text()


def test_the_page_of_the_first_generation_shows_the_examples():
    """api.md checklist 62."""
    shown = re.findall(r"```python\n(.*?)```", FIRST_GENERATION, re.DOTALL)
    folder = ROOT / "examples" / "first_generation"
    assert shown == [(folder / name).read_text() for name in ("prefill.py", "decode.py")]


@pytest.mark.slow
def test_the_first_generation(tmp_path):
    """api.md checklist 62: started together, the decode side first; no finalize."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                ROOT / "examples" / "first_generation" / name,
                str(port),
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("decode.py", "prefill.py")
    ]
    try:
        for process in processes:
            shown, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
            assert f"\n{shown}" in FIRST_GENERATION
    finally:
        for process in processes:
            process.kill()
            process.communicate()
