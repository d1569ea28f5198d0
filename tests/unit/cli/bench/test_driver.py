"""Drivers: contenders in processes that sleep during the turns of others."""

import os
from pathlib import Path

import pytest

from llm_datadist.cli.bench.datadist import Datadist
from llm_datadist.cli.bench.driver import Driver, call_times, prepare, prepare_write, turn
from llm_datadist.cli.bench.limits import BareReadv
from llm_datadist.cli.bench.work import MIB, Case

CASE = Case("4 KiB", 4096, MIB, tensors=2)


class Absent(Datadist):
    """Cannot be made."""

    name = "absent"

    def __init__(self, _local):
        raise OSError("no such library")


def state(pid):
    """Return the letter that /proc has for the state of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def lives(pid):
    try:
        return state(pid) != "Z"
    except FileNotFoundError:
        return False


def pids(contender):
    return [os.getpid(), contender.owner.pid]


def damage(contender, case):
    """Make the next write of the case wrong in one byte."""
    write = contender.write

    def wrong(_case):
        contender.local[case.total_bytes - 1] ^= 1
        write(case)

    contender.write = wrong


@pytest.mark.slow
def test_a_driver_checks_and_times_transfers_and_sleeps_otherwise(eventually):
    driver = Driver(Datadist, MIB)
    try:
        processes = driver.call(pids)
        eventually(lambda: [state(pid) for pid in processes] == ["T", "T"])
        driver.call(prepare, CASE)
        driver.call(prepare_write, CASE)
        assert driver.call(turn, "read", CASE, 3)[0] == 3
        assert driver.call(turn, "write", CASE, 1, 0.01)[1] >= 0.01
        (p50,) = driver.call(call_times, 20, (50,))
        assert p50 > 0
        driver.call(prepare, CASE)
        driver.call(damage, CASE)
        with pytest.raises(RuntimeError, match="push 4 KiB: wrong bytes"):
            driver.call(prepare_write, CASE)
    finally:
        driver.close()
    eventually(lambda: not any(map(lives, processes)))


@pytest.mark.slow
def test_a_contender_that_cannot_be_made_is_an_error():
    with pytest.raises(RuntimeError, match="absent: no such library"):
        Driver(Absent, MIB)


@pytest.mark.slow
def test_bare_reads_move_every_byte():
    driver = Driver(BareReadv, MIB)
    try:
        driver.call(prepare, CASE)
    finally:
        driver.close()
