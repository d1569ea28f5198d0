"""Processes whose standard modules gevent has patched."""

import pytest

from support.setup import run_program

pytest.importorskip("gevent", reason="gevent is not installed")

PROGRAM = """
import gevent.monkey
gevent.monkey.patch_all({arguments})
from llm_datadist import LLMException
from support.setup import info_of, started

try:
    one = started(1)
except LLMException as error:
    raise SystemExit(str(error))
other = started(2)
print(one.link_clusters([info_of(other)])[0].name)
one.finalize()
other.finalize()
"""


def run(arguments):
    return run_program(PROGRAM.format(arguments=arguments))


@pytest.mark.parametrize(
    ("arguments", "patched"),
    [("", "thread, socket, select, ssl"), ("thread=False, ssl=False", "socket, select")],
)
def test_init_says_what_to_patch_instead(arguments, patched):
    ran = run(arguments)
    assert ran.returncode == 1, ran
    assert "[LLM_FAILED]: gevent has patched " + patched + " of this process" in ran.stderr
    assert "patch_all(thread=False, socket=False, select=False, ssl=False)" in ran.stderr


def test_what_it_says_works():
    ran = run("thread=False, socket=False, select=False, ssl=False")
    assert (ran.returncode, ran.stdout) == (0, "LLM_SUCCESS\n"), ran.stderr
