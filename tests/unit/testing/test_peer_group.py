"""PeerGroup: bodies as processes and as threads, their messages, and how they end."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist.testing import (
    Exited,
    Finished,
    Killed,
    PeerFailed,
    PeerGroup,
    Raised,
    TimedOut,
    leaks_since,
    snapshot,
)

KINDS = ["process", "thread"]


def add(member, left, right):
    return left + right


def identify(member):
    return [member.name, member.index, os.getpid()]


def name_itself(member):
    ctypes.CDLL(None).prctl(15, b"\xff")
    member.send("named")
    member.receive()


def echo_twice(member):
    for _ in range(2):
        member.send(member.receive())


def raise_plainly(member):
    raise ValueError("bad luck")


def raise_with_status(member):
    raise LLMException("too late", status_code=LLMStatusCode.LLM_TIMEOUT)


def announce(member, value):
    member.set_event("ready", value)
    member.wait_end()


def await_announcement(member):
    return member.wait_for("ready")


def meet(member, rounds, parties):
    times = []
    for _ in range(rounds):
        member.barrier("round", parties)
        times.append(time.monotonic())
    return times


def end_without_report(member):
    os._exit(3)


def abort(member):
    os.abort()


def fail_at_exit(member):
    import atexit

    atexit.register(os._exit, 5)
    return "returned"


def count_up(member):
    member.set_event("running")
    count = 0
    while True:
        count += 1
        member.send(count)
        time.sleep(0.001)


def leave_child(member):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], close_fds=False)
    member.send(child.pid)


def return_function(member):
    return leave_child


def sleep_long(member):
    member.set_event("asleep")
    time.sleep(60)


def wait_for_nothing(member, timeout_s=None):
    member.wait_for("never", timeout_s)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_values_come_back(kind):
    with PeerGroup(kind) as group:
        group.start(add, 2, 3)
        group.start(add, b"a", b"b")
        assert group.values() == [5, b"ab"]


def test_large_integers_survive(kind):
    with PeerGroup(kind) as group:
        assert group.start(add, 2**64 - 2, 1).value() == 2**64 - 1


def test_a_body_by_name(kind):
    with PeerGroup(kind) as group:
        peer = group.start("llm_datadist.testing.exits:Finished", name="by-name")
        exit_ = peer.wait()
    assert isinstance(exit_, Raised)  # Finished(here) cannot travel: the name was found and called
    assert "cannot be sent" in exit_.text


def test_processes_are_fresh_and_named():
    with PeerGroup() as group:
        group.start(identify, name="prefill")
        group.start(identify)
        first, second = group.values()
    assert first[:2] == ["prefill", 0]
    assert second[:2] == ["identify-1", 1]
    assert len({first[2], second[2], os.getpid()}) == 3


def test_messages_both_ways(kind):
    with PeerGroup(kind) as group:
        peer = group.start(echo_twice)
        for value in ({"a": [1, None, 2.5]}, "text"):
            peer.send(value)
            assert peer.receive() == value
        assert peer.wait() == Finished(None)
        with pytest.raises(PeerFailed, match="echo_twice"):
            peer.receive()


def test_exceptions_come_back_typed(kind):
    with PeerGroup(kind) as group:
        plain = group.start(raise_plainly).wait()
        status = group.start(raise_with_status).wait()
    assert isinstance(plain, Raised)
    assert (plain.type_name, plain.text, plain.status) == ("ValueError", "bad luck", None)
    assert "raise_plainly" in plain.traceback
    assert isinstance(status, Raised)
    assert (status.type_name, status.status) == ("LLMException", "LLM_TIMEOUT")


def test_a_value_that_cannot_travel_is_an_error(kind):
    with PeerGroup(kind) as group:
        exit_ = group.start(return_function).wait()
    assert isinstance(exit_, Raised)


def test_an_exception_nobody_looked_at_fails_the_group(kind):
    with pytest.raises(PeerFailed, match="bad luck"), PeerGroup(kind) as group:
        group.start(raise_plainly)


def test_events_reach_present_and_later_peers(kind):
    with PeerGroup(kind) as group:
        early = group.start(await_announcement)
        group.start(announce, 42)
        assert group.wait_for("ready") == 42
        late = group.start(await_announcement)
        assert [early.value(), late.value()] == [42, 42]


def test_the_group_announces_too(kind):
    with PeerGroup(kind) as group:
        peer = group.start(await_announcement)
        group.set_event("ready", "go")
        assert peer.value() == "go"


def test_a_wait_for_an_event_ends_with_the_peer_that_raised(kind):
    with PeerGroup(kind) as group:
        peer = group.start(raise_plainly)
        with pytest.raises(PeerFailed, match="bad luck"):
            group.wait_for("ready")
        assert isinstance(peer.wait(), Raised)


def test_a_new_peer_gives_new_hope(kind):
    with PeerGroup(kind) as group:
        group.start(add, 1, 1).value()
        group.start(announce, "again")
        assert group.wait_for("ready") == "again"


def test_waits_are_bounded(kind):
    with PeerGroup(kind, timeout_s=0.05) as group:
        patient = group.start(wait_for_nothing, 2.0)  # somebody has to be there to wait for
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            group.wait_for("never")
        exit_ = group.start(wait_for_nothing).wait(10)
        assert isinstance(patient.wait(10), Raised)
    assert isinstance(exit_, Raised)
    assert exit_.type_name == "TimeoutError"


def test_barriers_are_reusable(kind):
    with PeerGroup(kind) as group:
        peers = [group.start(meet, 3, 3) for _ in range(2)]
        for _ in range(3):
            group.barrier("round", 3)
        first, second = (peer.value() for peer in peers)
    assert max(first[0], second[0]) <= min(first[1], second[1])
    assert max(first[1], second[1]) <= min(first[2], second[2])


def test_an_end_without_report():
    with PeerGroup() as group:
        assert group.start(end_without_report).wait() == Exited(3)
        assert group.start(abort).wait() == Killed(signal.SIGABRT)


def test_a_crash_after_the_body_counts():
    with PeerGroup() as group:
        assert group.start(fail_at_exit).wait() == Exited(5)


def test_kill():
    with PeerGroup() as group:
        peer = group.start(sleep_long)
        group.wait_for("asleep")
        assert peer.wait(0) == TimedOut(0)
        peer.kill()
        assert peer.wait() == Killed(signal.SIGKILL)


def test_freeze_and_thaw():
    with PeerGroup() as group:
        peer = group.start(count_up)
        group.wait_for("running")
        peer.receive()
        peer.freeze()
        with pytest.raises(TimeoutError):  # what was on its way comes, then nothing
            while True:
                peer.receive(0.1)
        peer.thaw()
        peer.receive()
        peer.freeze()
        peer.kill()
        assert peer.wait() == Killed(signal.SIGKILL)


def test_a_process_whose_name_is_no_text_can_be_frozen():
    with PeerGroup() as group:
        peer = group.start(name_itself)
        peer.receive()
        peer.freeze()
        peer.thaw()
        peer.send("end")
        assert peer.wait(10) == Finished(None)


def test_threads_take_no_signals():
    with PeerGroup("thread") as group:
        assert not group.takes_signals
        peer = group.start(announce, 1)
        for call in (peer.kill, peer.freeze, peer.thaw):
            with pytest.raises(RuntimeError, match="thread"):
                call()


def test_a_grandchild_does_not_hide_the_end():
    with PeerGroup() as group:
        peer = group.start(leave_child)
        grandchild = peer.receive()
        assert peer.wait(10) == Finished(None)
        os.kill(grandchild, signal.SIGKILL)


def test_nothing_is_left_behind(kind):
    before = snapshot()
    with PeerGroup(kind) as group:
        group.start(announce, 1)
        group.start(wait_for_nothing)
        group.wait_for("ready")
    assert leaks_since(before) == []


def test_an_exception_in_the_context_kills_at_once():
    before = snapshot()
    started = time.monotonic()
    with pytest.raises(KeyError), PeerGroup() as group:
        group.start(sleep_long)
        group.wait_for("asleep")
        raise KeyError
    assert time.monotonic() - started < 8
    assert leaks_since(before) == []


def test_a_peer_dies_with_its_group():
    """The group's process is killed: its peers must not stay behind."""
    with PeerGroup() as outer:
        keeper = outer.start(keep_a_peer)
        pid = keeper.receive()
        keeper.kill()
        assert keeper.wait() == Killed(signal.SIGKILL)
        deadline = time.monotonic() + 10
        process = Path(f"/proc/{pid}/exe")
        while process.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not process.exists()


def keep_a_peer(member):
    with PeerGroup() as group:
        peer = group.start(sleep_long)
        group.wait_for("asleep")
        member.send(peer.pid)
        threading.Event().wait()


def test_local_functions_are_refused():
    with PeerGroup() as group:
        with pytest.raises(ValueError, match="top level"):
            group.start(lambda local: None)
        with pytest.raises(ValueError, match="module:function"):
            group.start("no-colon")


def environment(member, name):
    return os.environ.get(name)


def test_a_command_runs_the_process():
    with PeerGroup() as group:
        peer = group.start(environment, "OF_PREFIX", command_prefix=("env", "OF_PREFIX=seen"))
        plain = group.start(environment, "OF_PREFIX")
        assert [peer.value(), plain.value()] == ["seen", None]


def test_no_command_runs_a_thread():
    with PeerGroup("thread") as group, pytest.raises(ValueError, match="command_prefix"):
        group.start(identify, command_prefix=("env",))
