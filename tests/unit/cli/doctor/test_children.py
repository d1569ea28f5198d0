"""Programs that crash, hang or print no result are findings, not failures of doctor."""

import sys

import pytest

from llm_datadist.cli.doctor.children import ChildFailed, run_json


def program(text):
    return [sys.executable, "-I", "-S", "-c", text]


def test_the_last_line_is_the_result():
    assert run_json(program("print('noise'); print('{\"a\": 1}')")) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import os; os.kill(os.getpid(), 11)", "it ended by SIGSEGV"),
        ("import sys; sys.exit(3)", "no result .exit status 3."),
        ("raise ValueError('so')", "no result .ValueError: so."),
        ("print('no JSON')", "no result"),
    ],
)
def test_how_a_program_failed(text, why):
    with pytest.raises(ChildFailed, match=why):
        run_json(program(text))


def test_a_program_that_hangs():
    with pytest.raises(ChildFailed, match="did not end within 0 s"):
        run_json(program("import signal; signal.pause()"), 0.01)


def test_a_program_does_not_wait_for_input():
    assert run_json(program("import sys; sys.stdin.read(); print('{}')")) == {}


def test_a_program_that_does_not_exist():
    with pytest.raises(ChildFailed, match="could not be started: No such file"):
        run_json(["/none/at/all"])
