"""Ids and traces of vLLM's requests, for their transfers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_ID = 128
"""Longest `request_id` of a transfer."""


def trace_headers_of(request: Any) -> dict[str, str] | None:
    """Return the trace headers of a request of vLLM's, or None."""
    headers = getattr(request, "trace_headers", None)
    return dict(headers) if headers else None


def transfer_id(request_id: str) -> str | None:
    """Return a request's id as transfers take it: clients may choose one that is refused there."""
    printable = "".join(each if each.isprintable() else "?" for each in request_id[:MAX_ID])
    return printable or None


@contextlib.contextmanager
def trace_of(headers: Mapping[str, str] | None) -> Iterator[None]:
    """Make transfers of this thread part of a request's trace.

    Args:
        headers: Of the request, W3C's `traceparent` among them; vLLM has them if it was started
            with --otlp-traces-endpoint, and so with OpenTelemetry. None: no trace.
    """
    if not headers:
        yield
        return
    try:
        from opentelemetry import context, propagate  # noqa: PLC0415 - only with a trace
    except ImportError:
        yield
        return
    token = context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        context.detach(token)
