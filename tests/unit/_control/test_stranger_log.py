"""What strangers can have logged is limited, and counted."""

import logging

import pytest

from llm_datadist._control.stranger_log import MAX_SOURCES, WINDOW_SECONDS, StrangerLog

pytestmark = pytest.mark.expects_log(".*")


class Clock:
    """Calls that are to be made later."""

    def __init__(self):
        self.calls = []

    def later(self, seconds, call):
        assert seconds == WINDOW_SECONDS
        self.calls.append(call)

    def a_minute_passes(self):
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def say(clock):
    stranger_log = StrangerLog(clock.later)

    def warn(host, level=logging.WARNING):
        stranger_log.log(level, host, "line about %s", host)

    return warn


def test_one_line_of_a_source_and_then_a_count(say, clock, caplog):
    for _ in range(1000):
        say("10.0.0.1")
    say("10.0.0.2")
    assert caplog.messages == ["line about 10.0.0.1", "line about 10.0.0.2"]
    clock.a_minute_passes()
    assert caplog.messages[2:] == [
        "999 more connections from 10.0.0.1 were closed within 60 s; their lines were suppressed"
    ]
    say("10.0.0.2")
    assert caplog.messages[3:] == ["line about 10.0.0.2"]
    say("10.0.0.1")
    assert len(caplog.messages) == 4, "still one a minute"
    clock.a_minute_passes()
    clock.a_minute_passes()
    say("10.0.0.1")
    assert caplog.messages[-1] == "line about 10.0.0.1"


def test_what_few_read_does_not_hide_a_warning(say, caplog):
    caplog.set_level(logging.INFO)
    say("10.0.0.1", logging.INFO)
    say("10.0.0.1")
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]


def test_all_addresses_of_one_host_are_one_source(say, caplog):
    for number in range(100):
        say(f"fd00::{number:x}")
    assert len(caplog.messages) == 1


def test_very_many_sources_are_one(say, clock, caplog):
    for number in range(2000):
        say(f"10.0.{number // 250}.{number % 250}")
    assert len(caplog.messages) == MAX_SOURCES + 1
    clock.a_minute_passes()
    (line,) = caplog.messages[MAX_SOURCES + 1 :]
    assert line.startswith(f"{2000 - MAX_SOURCES - 1} more connections from other addresses")
    clock.a_minute_passes()
    clock.a_minute_passes()
    assert clock.calls == []
