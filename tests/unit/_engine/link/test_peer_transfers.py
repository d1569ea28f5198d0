"""What a peer says of its transfers: log lines and spans, and no more of them than the limits."""

import logging
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from llm_datadist import LLMStatusCode
from llm_datadist._engine.link import peer_transfers
from llm_datadist._engine.link.messages import Ended, EndedTransfer
from llm_datadist._engine.link.peer_transfers import (
    MAX_LINES,
    MAX_SLOW_LINES,
    MAX_SPANS,
    PeerTransfers,
)
from support.spans import spans, trace

__all__ = ["spans"]

LINK = SimpleNamespace(cluster_id=2, address=("192.0.2.7", 26000))
OTHER = SimpleNamespace(cluster_id=3, address=("192.0.2.8", 26000))
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = f"00-{TRACE}-{PARENT}-01"
DONE = EndedTransfer("cmpl-1", TRACED, "pull_blocks", "tcp", 8192, 0, 5_000_000, 3_000)
LINE = (
    "pull_blocks, request cmpl-1, by peer cluster 2 at 192.0.2.7:26000, 8192 bytes over tcp, "
    "5.0 ms, LLM_SUCCESS"
)


class Clock:
    now_ns = 1_000

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_transfer_is_logged_at_debug(caplog):
    transfers = PeerTransfers(None)
    transfers.receive(LINK, Ended((DONE,)))
    assert lines(caplog) == []
    caplog.set_level("DEBUG", "llm_datadist")
    transfers.receive(LINK, Ended((DONE,)))
    assert lines(caplog) == [LINE]


@pytest.mark.expects_log("slow transfer by a peer")
def test_a_slow_one_is_a_warning(caplog):
    PeerTransfers(4).receive(LINK, Ended((DONE, replace(DONE, duration_ns=4_000_000))))
    assert lines(caplog) == ["slow transfer by a peer: " + LINE]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_status_of_a_later_version_is_a_number(caplog):
    caplog.set_level("DEBUG", "llm_datadist")
    PeerTransfers(None).receive(LINK, Ended((replace(DONE, status=4000),)))
    assert lines(caplog)[0].endswith("5.0 ms, status 4000")


def test_the_span_is_a_child_of_the_peers_span(spans):
    PeerTransfers(None).receive(LINK, Ended((DONE,)))
    (span,) = spans.served()
    assert (span.name, span.kind) == ("pull_blocks", trace.SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.parent.is_remote
    assert span.end_time - span.start_time == 5_000_000
    assert span.status.is_ok
    assert dict(span.attributes) == {
        "llm_datadist.operation": "pull_blocks",
        "llm_datadist.request_id": "cmpl-1",
        "llm_datadist.peer.cluster_id": "2",
        "llm_datadist.path": "tcp",
        "llm_datadist.bytes": 8192,
        "llm_datadist.status": "LLM_SUCCESS",
        "network.peer.address": "192.0.2.7",
        "network.peer.port": 26000,
    }


def test_the_span_of_a_failure(spans):
    PeerTransfers(None).receive(
        LINK, Ended((replace(DONE, status=LLMStatusCode.LLM_TIMEOUT, num_bytes=0),))
    )
    (span,) = spans.served()
    assert (span.status.is_ok, span.status.description) == (False, "LLM_TIMEOUT at the peer")
    assert span.attributes["llm_datadist.status"] == "LLM_TIMEOUT"
    assert span.attributes["error.type"] == "LLM_TIMEOUT"


def test_what_the_peer_does_not_sample_is_not_sampled(spans):
    unsampled = replace(DONE, traceparent=TRACED.removesuffix("01") + "00")
    PeerTransfers(None).receive(LINK, Ended((unsampled,)))
    assert spans.served() == []


def test_without_a_context_there_is_no_span(spans):
    PeerTransfers(None).receive(LINK, Ended((replace(DONE, traceparent=None),)))
    assert spans.served() == []


def test_a_duration_longer_than_the_clock_is_no_error(spans):
    PeerTransfers(None).receive(LINK, Ended((replace(DONE, duration_ns=2**62, age_ns=2**62),)))
    (span,) = spans.served()
    assert span.start_time == 0


@pytest.mark.expects_log("slow transfer by a peer")
def test_a_peer_can_flood_neither_log_nor_tracer(caplog, spans, clock, monkeypatch):
    caplog.set_level("DEBUG", "llm_datadist")
    monkeypatch.setattr(peer_transfers, "MAX_SPANS", 20)
    transfers = PeerTransfers(4, clock)
    many = Ended((replace(DONE, duration_ns=1),) * (MAX_LINES + 1))
    transfers.receive(LINK, many)
    assert len(caplog.records) == MAX_LINES
    assert len(spans.served()) == 20 < MAX_SPANS
    transfers.receive(OTHER, Ended((DONE,)))
    assert len(caplog.records) == MAX_LINES + 1
    caplog.clear()
    clock.now_ns += 1_000_000_000
    transfers.receive(LINK, Ended((DONE,) * 200))
    levels = [record.levelno for record in caplog.records]
    assert levels.count(logging.WARNING) == MAX_SLOW_LINES
    assert levels.count(logging.DEBUG) == MAX_LINES
    assert len(spans.served()) == 20 + 1 + 20


def test_what_is_known_of_peers_is_bounded(caplog, clock, monkeypatch):
    caplog.set_level("DEBUG", "llm_datadist")
    monkeypatch.setattr(peer_transfers, "_MAX_PEERS", 10)
    transfers = PeerTransfers(None, clock)
    for number in range(25):
        transfers.receive(SimpleNamespace(cluster_id=number, address=("h", 1)), Ended((DONE,)))
    assert len(transfers._lines._since) <= 10
