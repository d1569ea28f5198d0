"""Silence of peers on a clock that only the heartbeat's own pauses move."""

import asyncio
from types import SimpleNamespace

import pytest

from llm_datadist._links import heartbeat
from llm_datadist._links.heartbeat import Heartbeat

PERIOD_S, TIMEOUT_S = 1.0, 10.0


class World:
    """A heartbeat over one link, run period by period."""

    def __init__(self, context, link, monkeypatch):
        self.now = 100.0
        self.context, self.link = context, link
        self.repaired, self.lost = [], []
        self.steps = iter([])
        clock = SimpleNamespace(monotonic=lambda: self.now, monotonic_ns=lambda: 0)
        monkeypatch.setattr(heartbeat, "time", clock)
        loop = SimpleNamespace(sleep=self.sleep, Semaphore=asyncio.Semaphore)
        monkeypatch.setattr(heartbeat, "asyncio", loop)
        link.liveness.checked_at = self.now
        context.index.add(link)

    async def sleep(self, seconds):
        for _ in range(3):  # let pings run
            await asyncio.sleep(0)
        next(self.steps)(self)
        self.now += seconds

    def run(self, steps):
        self.steps = iter(steps)

        async def run():
            beat = Heartbeat(self.context, self.repaired.append, self.lose)
            await beat.run()

        with pytest.raises(RuntimeError, match="StopIteration"):
            asyncio.run(run())

    def lose(self, link, reason):
        self.lost.append((self.now, reason))
        link.lost.set()


@pytest.fixture
def world(make_context, make_link, monkeypatch):
    context = make_context(heartbeat_ms=1000, peer_timeout_ms=10_000)
    return World(context, make_link(), monkeypatch)


def test_a_link_with_traffic_is_not_pinged(world):
    world.run([lambda world: setattr(world.context.delegate, "count", world.now)] * 20)
    assert not world.lost
    assert len(world.context.delegate.pinged) <= 1


def test_an_idle_peer_that_answers_lives(world):
    world.run([lambda world: None] * 40)
    assert not world.lost
    assert world.link.conversation.keepalives == 0
    assert len(world.context.delegate.pinged) > 20


def test_a_silent_peer_is_pinged_sparingly_and_lost_after_the_timeout(world):
    world.context.delegate.answers = False
    world.run([lambda world: None] * 20)
    ((lost_at, reason),) = world.lost
    assert 100 + TIMEOUT_S <= lost_at <= 100 + TIMEOUT_S + 2 * PERIOD_S
    assert "silent for" in reason
    assert world.link.conversation.keepalives == 1
    assert 2 <= len(world.context.delegate.pinged) <= 8


def test_time_in_which_this_process_was_frozen_is_no_silence(world):
    world.context.delegate.answers = False

    def freeze(world):
        world.now += 1000

    world.run([lambda world: None, freeze, lambda world: None])
    assert not world.lost
    assert world.link.liveness.silence <= 4 * PERIOD_S


def test_lost_lanes_are_repaired(world):
    world.context.delegate.missing = (0, 1)
    world.run([lambda world: None])
    assert world.repaired[0] is world.link


def test_very_many_links_are_checked_less_often(world):
    beat = Heartbeat(world.context, world.repaired.append, world.lose)
    assert [beat._period(count) for count in (0, 400, 1000, 100_000)] == [1.0, 1.0, 2.5, 2.5]


def test_any_sign_of_life_ends_the_silence(world):
    """Twice most of the timeout is no silence of the timeout."""
    world.context.delegate.answers = False

    def answer(world):
        world.context.delegate.count += 1

    silent = [lambda world: None] * 7
    world.run([*silent, answer, *silent, answer])
    assert not world.lost


def test_a_peer_is_not_lost_while_its_pings_wait_for_a_worker(world):
    async def never(call, *arguments):
        await asyncio.Event().wait()

    world.context.workers = SimpleNamespace(run=never)
    world.run([lambda world: None] * 30)
    assert not world.lost
    assert world.link.liveness.silence > TIMEOUT_S


def test_very_many_links_are_checked_in_steps(world, make_link):
    """Each link once a period, and never so many at once that the loop is long away."""
    for cluster_id in range(3, 602):
        link = make_link(cluster_id)
        link.liveness.checked_at = world.now
        world.context.index.add(link)
    world.run([lambda world: None] * 3)
    assert world.now == pytest.approx(100 + 600 / 400)
    pinged = world.context.delegate.pinged[:3]
    assert [len(links) for links in pinged] == [256, 256, 88]
    assert len({link for links in pinged for link in links}) == 600
