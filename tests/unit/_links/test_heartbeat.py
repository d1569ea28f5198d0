"""Silence of peers on a clock that only the heartbeat's own pauses move."""

import asyncio
from types import SimpleNamespace

import numpy as np
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
        context.index.add(link)

    async def sleep(self, seconds):
        for _ in range(3):  # let pings run
            await asyncio.sleep(0)
        next(self.steps)(self)
        self.now += seconds

    def run(self, steps):
        self.steps = iter(steps)

        async def run():
            self.beat = Heartbeat(self.context, self.repaired.append, self.lose)
            await self.beat.run()

        with pytest.raises(RuntimeError, match="StopIteration"):
            asyncio.run(run())

    @property
    def silence(self):
        part, place = self.beat._places[self.link]
        return part.silence[place]

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
    assert 40 / 7 <= len(world.context.delegate.pinged) <= 40 / 5


def test_a_silent_peer_is_pinged_sparingly_and_lost_after_the_timeout(world):
    world.context.delegate.answers = False
    world.run([lambda world: None] * 20)
    ((lost_at, reason),) = world.lost
    assert 100 + TIMEOUT_S <= lost_at <= 100 + TIMEOUT_S + 2 * PERIOD_S
    assert "silent for" in reason
    assert world.link.conversation.keepalives == 1
    assert 2 <= len(world.context.delegate.pinged) <= 4


def test_time_in_which_this_process_was_frozen_is_no_silence(world):
    world.context.delegate.answers = False

    def freeze(world):
        world.now += 1000

    world.run([lambda world: None, freeze, lambda world: None])
    assert not world.lost
    assert world.silence <= 4 * PERIOD_S


@pytest.mark.parametrize("heartbeat_ms", [250, 1000, 2500])
def test_the_end_that_dialed_pings_first(make_context, make_link, monkeypatch, heartbeat_ms):
    """Its pings are requests, which count as signs of life at the other end.

    They come in time for it, however often each of the ends looks.
    """
    context = make_context(heartbeat_ms=heartbeat_ms, peer_timeout_ms=10_000)
    world = World(context, make_link(), monkeypatch)
    pinged_at = []

    def note(world):
        while len(pinged_at) < len(context.delegate.pinged):
            pinged_at.append(world.now)

    world.run([note] * (60_000 // heartbeat_ms))
    pauses = np.diff(pinged_at)
    assert (pauses >= PERIOD_S * 5).all()
    assert (pauses <= PERIOD_S * 6).all()


@pytest.mark.parametrize("heartbeat_ms", [250, 1000, 2500])
def test_the_end_that_accepted_waits_for_pings(make_context, make_link, monkeypatch, heartbeat_ms):
    context = make_context(heartbeat_ms=heartbeat_ms, peer_timeout_ms=10_000)
    world = World(context, make_link(dialed=False), monkeypatch)

    def ping(world):
        world.context.delegate.count = world.now // 6.2

    num_periods = 30_000 // heartbeat_ms
    world.run([ping] * num_periods)
    assert world.context.delegate.pinged == []
    world.run([lambda world: None] * num_periods)
    assert world.context.delegate.pinged


@pytest.mark.parametrize("heartbeat_ms", [50, 1000, 5000])
@pytest.mark.parametrize("dialed", [True, False])
def test_the_bound_holds_at_either_end_for_any_period(
    make_context, make_link, monkeypatch, heartbeat_ms, dialed
):
    context = make_context(heartbeat_ms=heartbeat_ms, peer_timeout_ms=10_000)
    context.delegate.answers = False
    world = World(context, make_link(dialed=dialed), monkeypatch)
    world.run([lambda world: None] * (20_000 // heartbeat_ms))
    ((lost_at, _),) = world.lost
    period = heartbeat_ms / 1000
    assert 100 + TIMEOUT_S <= lost_at <= 100 + TIMEOUT_S + 2 * period


def test_what_is_known_of_a_link_outlasts_changes_of_others(world, make_link):
    """Otherwise no peer would be lost while others come and go."""
    world.context.delegate.answers = False

    def come(world):
        other = make_link(3 + len(world.context.index.links))
        other.lost.set()
        world.context.index.add(other)

    world.run([come] * 13)
    assert [at for at, _ in world.lost][:1] == [pytest.approx(100 + TIMEOUT_S, abs=2)]


def test_lost_lanes_are_repaired(world):
    world.context.delegate.missing = (0, 1)
    world.run([lambda world: None])
    assert world.repaired[0] is world.link


@pytest.mark.parametrize(("num_links", "num_pruned"), [(1, 20), (250, 8)])
def test_lost_lanes_of_very_many_links_are_looked_for_less_often(
    world, make_link, num_links, num_pruned
):
    """Those of a hundred links a second, because it takes most of the time of a check."""
    for cluster_id in range(3, 2 + num_links):
        world.context.index.add(make_link(cluster_id))
    world.run([lambda world: None] * 19)
    assert world.now == 100 + 19 * PERIOD_S
    assert world.context.delegate.pruned == pytest.approx(num_pruned, abs=1)


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


def test_a_peer_whose_control_plane_answers_lives_without_lanes(world):
    world.context.delegate.answers = False

    def pong(world):
        world.link.conversation.num_received = world.link.conversation.keepalives

    world.run([pong] * 40)
    assert world.link.conversation.keepalives > 2
    assert not world.lost


def test_a_peer_is_not_lost_while_its_pings_wait_for_a_worker(world):
    waiting = []  # else nothing refers to the task that waits, and it is collected

    async def never(call, *arguments):
        waiting.append(asyncio.Event())
        await waiting[-1].wait()

    world.context.workers = SimpleNamespace(run=never)
    world.run([lambda world: None] * 30)
    assert not world.lost
    assert world.silence > TIMEOUT_S


def test_very_many_links_are_checked_in_steps(world, make_link):
    """Each link once a period, and never so many at once that the loop is long away."""
    for cluster_id in range(3, 602):
        link = make_link(cluster_id)
        world.context.index.add(link)
    world.run([lambda world: None] * 12)
    assert world.now == pytest.approx(100 + 4 * 600 / 400)
    pinged = world.context.delegate.pinged[:3]
    assert sorted(len(links) for links in pinged) == [88, 256, 256]
    assert len({link for links in pinged for link in links}) == 600
