"""Ids and traces of vLLM's requests, for their transfers."""

import sys

import pytest

from llm_datadist import _tracing
from llm_datadist.integrations.vllm.request_traces import (
    MAX_ID,
    trace_headers_of,
    trace_of,
    transfer_id,
)
from support.spans import trace
from support.vllm.fake_worker import TRACE_HEADERS, TRACE_ID
from support.vllm.objects import request


def trace_id():
    return trace.get_current_span().get_span_context().trace_id


@pytest.mark.parametrize(
    ("given", "expected"),
    [("cmpl-1", "cmpl-1"), ("a\nb", "a?b"), ("x" * 500, "x" * MAX_ID), ("", None)],
)
def test_an_id_that_a_client_has_chosen_is_never_refused(given, expected):
    assert transfer_id(given) == expected
    if expected:
        assert _tracing.request_trace("pull_blocks", expected).request_id == expected
    assert MAX_ID == _tracing.MAX_REQUEST_ID


@pytest.mark.parametrize("headers", [None, {}])
def test_a_request_without_a_trace(headers):
    assert trace_headers_of(request(trace_headers=headers)) is None
    with trace_of(headers):
        assert trace_id() == 0


def test_a_vllm_without_traces():
    assert trace_headers_of(object()) is None


def test_the_trace_of_a_request_is_current_for_its_transfers():
    headers = trace_headers_of(request(trace_headers=TRACE_HEADERS))
    with trace_of(headers):
        assert trace_id() == TRACE_ID
    assert trace_id() == 0


def test_headers_that_are_no_trace():
    with trace_of({"traceparent": "nonsense"}):
        assert trace_id() == 0


def test_without_opentelemetry_transfers_run_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with trace_of(TRACE_HEADERS):
        assert trace_id() == 0
