"""The programs of docs/tutorial run as they stand there, and print what it says."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial" / "two-processes.md").read_text()
FIRST_GENERATION = (ROOT / "docs" / "tutorial" / "first-generation.md").read_text()


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
                assert f"\n{line}\n" in PAGE or line.startswith("the path was")
            assert shown.count("\n") == 2
            shown, errors = prefill.communicate("\n", timeout=60)
            assert (prefill.returncode, errors) == (0, "")
            assert shown.strip() in PAGE
        finally:
            prefill.kill()


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
