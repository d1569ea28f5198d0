"""Request ids and the spans of their transfers."""

import sys

import pytest

from llm_datadist import LLMException, LLMStatusCode, _tracing
from llm_datadist._errors import fail
from llm_datadist._tracing import EndedTransfer, has_tracer, make_peer_span, request_trace
from support.spans import sdk, spans, trace, traceparent_of

__all__ = ["spans"]

OK = EndedTransfer("pull_blocks", 2**64 - 1, ("192.0.2.7", 26000), "tcp", 8192, 5_000_000)


@pytest.mark.parametrize("given", [7, b"r", ["r"]])
def test_a_request_id_is_text(given):
    with pytest.raises(TypeError, match="request_id must be str"):
        request_trace("pull_blocks", given)


@pytest.mark.parametrize("given", ["", "x" * 129, "two\nlines", "\ud800", "bell\a"])
def test_a_request_id_is_short_and_printable(given):
    with pytest.raises(LLMException, match="give 1 to 128 printable characters") as caught:
        request_trace("pull_blocks", given)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_longest_and_other_letters():
    assert request_trace("pull_blocks", "Ä" * 128).named("x") == "x, request " + "Ä" * 128


def test_the_span_of_a_transfer(spans):
    with spans.current() as parent:
        made = request_trace("pull_blocks", "cmpl-1", [3, 4])
    traceparent = made.end(OK)
    (span,) = spans.ended()
    assert traceparent == traceparent_of(span)
    assert (span.name, span.kind) == ("pull_blocks", trace.SpanKind.CLIENT)
    assert span.end_time - span.start_time == 5_000_000
    assert span.parent.span_id == parent.get_span_context().span_id
    assert span.context.trace_id == parent.get_span_context().trace_id
    assert span.status.is_ok
    assert dict(span.attributes) == {
        "llm_datadist.operation": "pull_blocks",
        "llm_datadist.request_id": "cmpl-1",
        "llm_datadist.peer.cluster_id": "18446744073709551615",
        "llm_datadist.path": "tcp",
        "llm_datadist.bytes": 8192,
        "llm_datadist.blocks": 2,
        "llm_datadist.status": "LLM_SUCCESS",
        "network.peer.address": "192.0.2.7",
        "network.peer.port": 26000,
    }


def test_the_span_of_a_transfer_that_failed_without_a_link(spans):
    error = fail(LLMStatusCode.LLM_NOT_YET_LINK, "push_cache", "no link", "link")
    made = request_trace("push_cache", "r")
    made.end(EndedTransfer("push_cache", 7, None, "none", 0, 10, error))
    (span,) = spans.ended()
    assert (span.status.is_ok, span.status.description) == (False, str(error))
    assert span.attributes["error.type"] == "LLM_NOT_YET_LINK"
    assert span.attributes["llm_datadist.status"] == "LLM_NOT_YET_LINK"
    assert span.parent is None
    left_out = {"llm_datadist.blocks", "network.peer.address", "network.peer.port"}
    assert not left_out & set(span.attributes)


def test_blocks_are_those_of_the_call_though_the_caller_changes_its_list(spans):
    blocks = [3, 4]
    made = request_trace("transfer_cache_async", "r", blocks)
    blocks.clear()
    made.end(OK)
    (span,) = spans.ended()
    assert span.attributes["llm_datadist.blocks"] == 2


def test_blocks_of_a_wrong_type_are_left_to_the_check_that_names_them():
    assert request_trace("pull_blocks", "r", 7).request_id == "r"


def test_a_provider_that_comes_later_gets_the_spans_of_later_calls(spans, monkeypatch):
    provider = trace.get_tracer_provider
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    request_trace("pull_blocks", "r").end(OK)
    monkeypatch.setattr(trace, "get_tracer_provider", provider)
    request_trace("pull_blocks", "r").end(OK)
    assert len(spans.ended()) == 1


def test_without_opentelemetry_there_are_no_spans(monkeypatch):
    monkeypatch.setattr(_tracing, "_found", [])
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert request_trace("pull_blocks", "r").end(OK) is None
    assert not has_tracer()
    make_peer_span(OK, "r", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 0)
    assert _tracing._found == [None]


@pytest.mark.expects_log("opentelemetry cannot be imported")
def test_an_opentelemetry_that_cannot_be_imported_is_named_once(monkeypatch, caplog):
    class Broken:
        def find_spec(self, name, path, target=None):
            if name == "opentelemetry.trace":
                raise StopIteration  # as its search for plugins does in a frozen program

    monkeypatch.setattr(_tracing, "_found", [])
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    monkeypatch.delattr("opentelemetry.trace")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for _ in range(2):
        request_trace("pull_blocks", "r").end(OK)
    assert len(caplog.records) == 1


@pytest.mark.expects_log("no span was made")
def test_a_program_whose_span_processor_fails_gets_its_bytes_all_the_same(spans):
    class Failing(sdk.SpanProcessor):
        def on_end(self, span):
            raise RuntimeError("the program's")

    spans.provider.add_span_processor(Failing())
    assert request_trace("pull_blocks", "r").end(OK) is None
    make_peer_span(OK, "r", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 0)


@pytest.mark.expects_log("no tracer provider")
def test_a_provider_that_cannot_be_loaded_is_named_once(monkeypatch, spans, caplog):
    def broken():
        raise RuntimeError("no such provider")

    monkeypatch.setattr(trace, "get_tracer_provider", broken)
    for _ in range(2):
        request_trace("pull_blocks", "r").end(OK)
    assert len(caplog.records) == 1
