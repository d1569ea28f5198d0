"""Processes of a benchmark: messages, failures, and that none is left."""

import os
import signal
import sys
from multiprocessing.connection import wait

import pytest

from llm_datadist.cli.bench.processes import receive, start


def echo(pipe):
    while True:
        pipe.send(pipe.recv())


def fail(pipe, status):
    pipe.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    pipe.send(ValueError("cannot"))
    sys.exit(status)


def start_a_stopped_one(pipe):
    process, other_end = start(sys.executable, echo)
    other_end.send("ready")
    other_end.recv()
    os.kill(process.pid, signal.SIGSTOP)
    pipe.send(process.pid)
    pipe.recv()


@pytest.fixture
def started():
    made = []

    def run(body, *arguments):
        made.append(start(sys.executable, body, *arguments))
        return made[-1]

    yield run
    for process, pipe in made:
        process.kill()
        process.join()
        pipe.close()


@pytest.mark.slow
def test_a_process_answers_until_it_is_ended(started):
    process, pipe = started(echo)
    pipe.send({"a": 1})
    assert receive(process, pipe) == {"a": 1}
    with pytest.raises(RuntimeError, match="no answer for 0 s"):
        receive(process, pipe, 0.01)
    process.kill()
    with pytest.raises(RuntimeError, match="was ended by SIGKILL"):
        receive(process, pipe)


@pytest.mark.slow
def test_failures_are_raised_and_ctrl_c_is_for_the_process_that_started_it(started):
    process, pipe = started(fail, 3)
    assert receive(process, pipe) is True
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(ValueError, match="cannot"):
        receive(process, pipe)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        receive(process, pipe)


@pytest.mark.slow
def test_a_process_that_was_not_ended_does_not_keep_the_program_from_ending():
    from support.setup import run_program

    done = run_program(
        "import operator, os, signal, sys\n"
        "from llm_datadist.cli.bench.processes import start\n"
        "process, pipe = start(sys.executable, operator.methodcaller('recv'))\n"
        "os.kill(process.pid, signal.SIGSTOP)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_stopped_process_ends_with_the_one_that_started_it(started):
    process, pipe = started(start_a_stopped_one)
    child = os.pidfd_open(receive(process, pipe))
    try:
        process.kill()
        assert wait([child], 20) == [child]
    finally:
        os.close(child)
