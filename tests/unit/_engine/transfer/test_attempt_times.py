"""How transfers are counted and timed: deadlines, durations, slow ones."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist import LLMException
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.transfer import attempt
from llm_datadist._engine.transfer.attempt import Request
from llm_datadist._errors import FIRST_GENERATION_STATUSES, fail, invalid
from llm_datadist._registry import Resolved
from llm_datadist._types.refs import NO_REF
from support.attempts import (
    BLOCKS,
    FOUND,
    KEY,
    LOCAL,
    REMOTE,
    REPLACED,
    TENSORS,
    UNIT,
    WAYS,
    Directory,
    Link,
    S,
    World,
    a_plan,
)


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now_ns = 10**12

    def monotonic_ns(self):
        return self.now_ns

    def run(self, world, ms):
        """Carry out a transfer each of whose attempts takes so long."""

        def plan(found):
            self.now_ns += ms * 1_000_000
            return a_plan(np.arange(BLOCKS), found.cache)

        world.attempts.run(Request("pull_blocks", KEY, world.local, plan))


def a_lookup(deadline_ns):
    return Request("pull_resharded", KEY, LOCAL, None, deadline_ns=deadline_ns)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(attempt, "time", made)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_a_transfer_has_the_time_of_sync_kv_timeout(clock, way):
    world = World(Link(Directory(known=FOUND)))
    WAYS[way](world)
    (transfer,) = world.link.transfers
    assert transfer.deadline_ns == clock.now_ns + 1_000_000_000


def test_a_transfer_that_is_part_of_a_call_has_the_deadline_of_that(clock):
    world, deadline_ns = World(Link(Directory(known=FOUND))), 5 * 10**12

    def plan(found):
        return a_plan(np.arange(1), found.cache)

    request = Request("pull_resharded", KEY, LOCAL, plan, deadline_ns=deadline_ns)
    world.attempts.run(request)
    assert world.link.transfers[0].deadline_ns == deadline_ns


def test_a_transfer_is_counted_once_with_its_bytes_and_its_duration(clock):
    """Also one that is repeated; its duration is that of the call."""
    changed = Resolved(REPLACED, 0, NO_REF)
    world = World(Link(Directory(changed, known=FOUND), Outcome(Code.STALE)))
    clock.run(world, 70)
    assert world.counted() == ("pull_blocks", "of host memory", TENSORS * BLOCKS * UNIT, {})
    (entry,) = world.counters.stats()
    assert entry.completed == 1
    assert entry.seconds.sum == pytest.approx(0.14)


def test_a_transfer_of_device_memory_is_counted_for_the_path_of_that():
    remote = SimpleNamespace(**vars(REMOTE) | {"on_device": True})
    world = World(Link(Directory(known=Resolved(remote, 0, NO_REF))))
    world.run()
    assert world.counted()[1] == "of device memory"


def test_a_push_to_bare_addresses_is_counted():
    world = World(Link(Directory()))
    world.push_raw()
    moved = TENSORS * BLOCKS * UNIT
    assert world.counted() == ("transfer_cache_async", "of host memory", moved, {})


def test_a_transfer_without_a_link_is_counted_as_a_failure():
    world = World(Link(Directory(known=FOUND)))

    def no_link(cluster_id, operation):
        raise fail(S.LLM_NOT_YET_LINK, operation, "no link", "link")

    world.links.get = no_link
    calls = (
        world.run,
        world.push_raw,
        lambda: world.attempts.look_up(a_lookup(0)),
    )
    for call in calls:
        with pytest.raises(LLMException):
            call()
    assert [(each.operation, each.path, each.errors) for each in world.counters.stats()] == [
        (operation, "none", {"LLM_NOT_YET_LINK": 1})
        for operation in ("pull_blocks", "pull_resharded", "transfer_cache_async")
    ]


def test_a_lookup_is_counted_only_when_it_fails():
    world = World(Link(Directory(FOUND)))
    world.attempts.look_up(a_lookup(10**18))
    assert world.counters.stats() == ()
    world.link.directory.known = invalid("x", "not accessible", "y")
    with pytest.raises(LLMException):
        world.attempts.look_up(a_lookup(10**18))
    failed = {"LLM_PARAM_INVALID": 1}
    assert world.counted() == ("pull_resharded", "of host memory", 0, failed)


def test_a_failure_has_the_status_of_its_generation():
    link = Link(Directory(known=FOUND), Outcome(Code.TIMEOUT))
    world = World(link, statuses=FIRST_GENERATION_STATUSES)
    world.fails(S.LLM_WAIT_PROCESS_TIMEOUT, "[LLM_WAIT_PROCESS_TIMEOUT]", "1000 ms")


@pytest.mark.expects_log("slow transfer")
def test_a_slow_transfer_is_logged_once(clock, caplog):
    clock.run(World(Link(Directory(known=FOUND)), slow_ms=200), 201)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.fullmatch(
        r"slow transfer: pull_blocks, peer cluster 2 at 192\.0\.2\.1:5, 512 bytes over of host "
        r"memory, 201\.0 ms, llm\.SlowTransferMs is 200",
        record.getMessage(),
    )


@pytest.mark.expects_log("slow transfer")
def test_a_slow_transfer_that_fails_is_logged_with_its_status(clock, caplog):
    world = World(Link(Directory(known=FOUND), Outcome(Code.TIMEOUT)), slow_ms=200)
    with pytest.raises(LLMException):
        clock.run(world, 400)
    (record,) = caplog.records
    assert "failed over of host memory with LLM_TIMEOUT" in record.getMessage()


@pytest.mark.parametrize("slow_ms", [None, 500])
def test_a_quick_transfer_is_not_logged(clock, caplog, slow_ms):
    clock.run(World(Link(Directory(known=FOUND)), slow_ms=slow_ms), 500)
    assert caplog.records == []
