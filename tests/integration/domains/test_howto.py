"""The program in docs/howto/rank-tables.md does what the page says."""

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "rank-tables.md"


@pytest.mark.slow
@pytest.mark.parametrize("order", [("prefill", "decode"), ("decode", "prefill")])
def test_the_two_processes(tmp_path, order):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    script = tmp_path / "pair.py"
    script.write_text(program)
    base_port = 12000 + 8 * secrets.randbelow(2000)
    environ = os.environ | {"HCCL_IF_BASE_PORT": f"{base_port}"}
    running = {
        side: subprocess.Popen(
            [sys.executable, str(script), side],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for side in order
    }
    try:
        printed = {side: process.communicate(timeout=60)[0] for side, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    assert {side: process.returncode for side, process in running.items()} == {
        "prefill": 0,
        "decode": 0,
    }, printed
    assert printed == {"prefill": "", "decode": "pulled 7.0 7.0\n"}
