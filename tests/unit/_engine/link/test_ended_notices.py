"""Notices of ended transfers: when they are sent, together with which, and which are dropped."""

from types import SimpleNamespace

import msgspec
import pytest

from llm_datadist._engine.link.ended_notices import MAX_QUEUED, PAUSE_SECONDS, EndedNotices
from llm_datadist._engine.link.messages import MAX_ENDED, Ended
from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._tracing import EndedTransfer, request_trace
from support.spans import spans, traceparent_of

__all__ = ["spans"]

OK = EndedTransfer("pull_blocks", 2, ("192.0.2.7", 26000), "tcp", 8192, 5_000_000)


class Links:
    """A link table whose control thread does what is posted when the test says so."""

    def __init__(self):
        self.hooks = SimpleNamespace()
        self.posted, self.sent = [], []
        self.takes = True

    def post(self, call, seconds=0.0):
        self.posted.append((seconds, call))

    def try_notify(self, link, body):
        if self.takes:
            self.sent.append((link, msgspec.msgpack.decode(body, type=Ended).transfers))
        return self.takes

    def work(self):
        """Do what is posted now; return after which pauses."""
        posted, self.posted = self.posted, []
        for _, call in posted:
            call()
        return [seconds for seconds, _ in posted]


class Link:
    """A link to a peer that takes notices, or one of an earlier version."""

    def __init__(self, *, takes_ended=True):
        self.data = SimpleNamespace(takes_ended=takes_ended, lost_notices=0)


class World:
    def __init__(self):
        self.links = Links()
        self.notices = EndedNotices(self.links)
        self.link = Link()

    def end(self, name="r", transfer=OK, link=None):
        self.notices.end(request_trace("pull_blocks", name), link or self.link, transfer)

    def ids(self):
        return [[each.request_id for each in transfers] for _, transfers in self.links.sent]


@pytest.fixture
def world():
    return World()


def test_the_first_is_sent_at_once_and_those_of_the_pause_together(world):
    world.end("1")
    assert world.links.work() == [0.0]
    assert world.ids() == [["1"]]
    world.end("2")
    world.end("3")
    assert world.links.work() == [PAUSE_SECONDS]
    assert world.ids() == [["1"], ["2", "3"]]
    assert world.links.work() == [PAUSE_SECONDS]
    assert world.links.work() == []
    world.end("4")
    assert world.links.work() == [0.0]
    assert world.ids() == [["1"], ["2", "3"], ["4"]]


def test_what_is_queued_is_sent_before_this_end_unlinks(world):
    world.end("1")
    world.links.hooks.on_unlink()
    assert world.ids() == [["1"]]
    world.links.work()
    assert world.ids() == [["1"]]


def test_a_notice_has_the_facts_and_the_span_of_the_transfer(world, spans):
    failed = fail(LLMStatusCode.LLM_TIMEOUT, "pull_blocks", "late", "wait")
    world.end("cmpl-1")
    world.end("cmpl-1", OK._replace(num_bytes=0, error=failed))
    world.links.work()
    ((link, (first, second)),) = world.links.sent
    assert link is world.link
    assert (first.request_id, first.operation, first.path) == ("cmpl-1", "pull_blocks", "tcp")
    assert (first.num_bytes, first.status, first.duration_ns) == (8192, 0, 5_000_000)
    assert (second.num_bytes, second.status) == (0, LLMStatusCode.LLM_TIMEOUT)
    assert first.age_ns >= second.age_ns >= 0
    made = [traceparent_of(span) for span in spans.ended()]
    assert [first.traceparent, second.traceparent] == made


def test_without_a_tracer_there_is_no_context(world):
    world.end()
    world.links.work()
    ((_, (ended,)),) = world.links.sent
    assert ended.traceparent is None


def test_a_peer_of_an_earlier_version_gets_none(world):
    world.end(link=Link(takes_ended=False))
    assert world.links.posted == []


def test_a_call_without_a_link_has_only_its_span(world, spans):
    world.notices.end(request_trace("pull_blocks", "r"), None, OK)
    assert len(spans.ended()) == 1
    assert world.links.posted == []


def test_many_are_sent_in_several_messages(world):
    for number in range(MAX_ENDED + 1):
        world.end(str(number))
    world.links.work()
    assert [len(ids) for ids in world.ids()] == [MAX_ENDED, 1]


def test_each_link_has_its_own_message(world):
    other = Link()
    world.end("1")
    world.end("2", link=other)
    world.end("3")
    world.links.work()
    assert [link for link, _ in world.links.sent] == [world.link, other]
    assert world.ids() == [["1", "3"], ["2"]]


def test_what_exceeds_the_queue_is_dropped_and_counted(world):
    for _ in range(MAX_QUEUED + 3):
        world.end()
    assert world.link.data.lost_notices == 3
    world.links.work()
    assert sum(map(len, world.ids())) == MAX_QUEUED


def test_what_the_peer_does_not_read_is_dropped_and_counted(world):
    world.links.takes = False
    world.end()
    world.end()
    world.links.work()
    assert world.link.data.lost_notices == 2
    world.links.takes = True
    world.end()
    world.links.work()
    assert len(world.links.sent) == 1
