"""The programs of docs/tutorial run as they stand there, and print what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial" / "two-processes.md").read_text()


@pytest.mark.slow
def test_two_processes(tmp_path):
    for program in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / re.match(r'"""(\w+\.py)', program)[1]).write_text(program)

    def start(name, port):
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(tmp_path / name), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with start("prefill.py", "0") as prefill:
        try:
            address = prefill.stdout.readline()
            assert address.startswith("prefill listens on 127.0.0.1:")
            with start("decode.py", address.strip().rpartition(":")[2]) as decode:
                shown, errors = decode.communicate(timeout=60)
            assert (decode.returncode, errors) == (0, "")
            for line in shown.splitlines():
                assert f"    {line}\n" in PAGE or line.startswith("the path was")
            assert shown.count("\n") == 2
            shown, errors = prefill.communicate("\n", timeout=60)
            assert (prefill.returncode, errors) == (0, "")
            assert shown.strip() in PAGE
        finally:
            prefill.kill()
