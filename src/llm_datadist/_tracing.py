"""Request ids of transfer calls, and the OpenTelemetry spans of their transfers, at both ends.

A call without a request id makes nothing of this module. OpenTelemetry is imported by the first
call with one; without it, or without a tracer provider, there are no spans.

Source: an extension; docs/howto/tracing.md.
"""

from __future__ import annotations

import logging
import operator
import time
from typing import TYPE_CHECKING, NamedTuple, final

from llm_datadist._errors import invalid
from llm_datadist._types.checks import check_str

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from opentelemetry.propagators.textmap import TextMapPropagator

    from llm_datadist._errors import LLMException

__all__ = [
    "MAX_REQUEST_ID",
    "EndedTransfer",
    "RequestTrace",
    "has_tracer",
    "make_peer_span",
    "request_trace",
]

logger = logging.getLogger("llm_datadist")

MAX_REQUEST_ID = 128
_TRACER = "llm_datadist"
_SUCCESS = "LLM_SUCCESS"


class EndedTransfer(NamedTuple):
    """Facts of a transfer that has ended.

    Attributes:
        operation: Public name of the call.
        cluster_id: The peer.
        address: Its address; None without a link.
        path: The data path.
        num_bytes: Bytes that were moved; 0 if it failed.
        duration_ns: How long it took.
        error: Why it failed; None if it did not.
        peer_status: Of a transfer that the peer has made: its status, and nothing more is known.
    """

    operation: str
    cluster_id: int
    address: tuple[str, int] | None
    path: str
    num_bytes: int
    duration_ns: int
    error: LLMException | None = None
    peer_status: str = _SUCCESS

    @property
    def status(self) -> str:
        """Name of the status code."""
        return self.peer_status if self.error is None else self.error.status_code.name

    @property
    def problem(self) -> str | None:
        """Why it failed, as a text; None if it did not."""
        if self.error is not None:
            return str(self.error)
        return None if self.status == _SUCCESS else f"{self.status} at the peer"


@final
class RequestTrace:
    """The request for which a call transfers, and the trace that it belongs to.

    Any thread may end transfers of the call: their spans are children of the span that was current
    where the call was made.

    Attributes:
        request_id: The caller's name of the request.
    """

    __slots__ = ("_num_blocks", "_parent", "request_id")

    def __init__(self, request_id: str, num_blocks: int | None) -> None:
        self.request_id: str = request_id
        self._num_blocks = num_blocks
        self._parent = None if _api() is None else _context()

    def named(self, operation: str) -> str:
        """Return an operation and the request, for log lines."""
        return f"{operation}, request {self.request_id}"

    def end(self, transfer: EndedTransfer) -> str | None:
        """Make the span of a transfer that has just ended. What fails in it is logged.

        Returns:
            The span for the peer, by W3C Trace Context; None if there is none.
        """
        api = _api()
        if api is None:
            return None

        def make() -> str | None:
            attributes = _attributes(transfer, self.request_id)
            if self._num_blocks is not None:
                attributes["llm_datadist.blocks"] = self._num_blocks
            span = _make_span(
                api, transfer, api.SpanKind.CLIENT, self._parent, attributes, time.time_ns()
            )
            carrier: dict[str, str] = {}
            _w3c().inject(carrier, api.set_span_in_context(span))
            return carrier.get("traceparent")

        return _guarded(self.named(transfer.operation), make)


def has_tracer() -> bool:
    """Return whether the program has set a tracer provider."""
    return _api() is not None


def make_peer_span(transfer: EndedTransfer, request_id: str, traceparent: str, age_ns: int) -> None:
    """Make the span of a transfer that a peer has made with local memory, as child of its span.

    Args:
        transfer: What the peer says of it.
        request_id: The peer's name of the request.
        traceparent: The peer's span, by W3C Trace Context.
        age_ns: How long ago it ended.
    """
    api = _api()
    if api is None:
        return

    def make() -> None:
        parent = _w3c().extract({"traceparent": traceparent})
        end_ns = max(time.time_ns() - age_ns, transfer.duration_ns)
        attributes = _attributes(transfer, request_id)
        _make_span(api, transfer, api.SpanKind.SERVER, parent, attributes, end_ns)

    _guarded(f"{transfer.operation} by cluster {transfer.cluster_id}", make)


def _guarded(named: str, make: Callable[[], str | None]) -> str | None:
    try:
        return make()
    except Exception:  # of the program's own samplers and processors
        logger.warning("%s: no span was made", named, exc_info=True)
        return None


def _make_span(
    api: ModuleType,
    transfer: EndedTransfer,
    kind: object,
    parent: object,
    attributes: dict[str, str | int],
    end_ns: int,
) -> object:
    """Make and end the span of a transfer that ended at a time of the wall clock."""
    span = api.get_tracer(_TRACER).start_span(
        transfer.operation,
        context=parent,
        kind=kind,
        attributes=attributes,
        start_time=end_ns - transfer.duration_ns,
    )
    if transfer.problem is not None:
        span.set_status(api.Status(api.StatusCode.ERROR, transfer.problem))
    span.end(end_ns)
    return span


def _attributes(transfer: EndedTransfer, request_id: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "llm_datadist.operation": transfer.operation,
        "llm_datadist.request_id": request_id,
        "llm_datadist.peer.cluster_id": str(transfer.cluster_id),
        "llm_datadist.path": transfer.path,
        "llm_datadist.bytes": transfer.num_bytes,
        "llm_datadist.status": transfer.status,
    }
    if transfer.address is not None:
        address, port = transfer.address
        attributes |= {"network.peer.address": address, "network.peer.port": port}
    if transfer.problem is not None:
        attributes["error.type"] = transfer.status
    return attributes


def request_trace(operation: str, request_id: str, blocks: object = None) -> RequestTrace:
    """Check a request id, and remember the trace of the calling thread or task.

    Args:
        operation: Public name of the call.
        request_id: 1 to 128 printable characters.
        blocks: The blocks that the call moves, not yet checked; None if it moves none. Their number
            is read at once: the caller may change a list while a layer-wise transfer runs.

    Raises:
        TypeError: request_id is no text.
        LLMException: LLM_PARAM_INVALID: it is empty, too long, or not printable.
    """
    text = check_str("request_id", request_id)
    if not 0 < len(text) <= MAX_REQUEST_ID or not text.isprintable():
        raise invalid(
            operation,
            f"request_id has {len(text)} characters: {text[:MAX_REQUEST_ID]!a}",
            f"give 1 to {MAX_REQUEST_ID} printable characters, or None",
        )
    # Not len: what has none is refused later, with a text that names the argument.
    return RequestTrace(text, None if blocks is None else operator.length_hint(blocks))


_found: list[ModuleType | None] = []
"""The module opentelemetry.trace, or None if it is not installed; empty before the first look."""


def _api() -> ModuleType | None:
    """Return opentelemetry.trace if the program has set a tracer provider, else None."""
    if not _found:
        _found.append(_imported())
    api = _found[0]
    if api is None:
        return None
    try:
        provider = api.get_tracer_provider()
    except Exception:  # OTEL_PYTHON_TRACER_PROVIDER names one that cannot be loaded
        logger.warning("there are no spans: no tracer provider", exc_info=True)
        _found[0] = None
        return None
    return None if isinstance(provider, api.ProxyTracerProvider) else api


def _imported() -> ModuleType | None:
    try:
        from opentelemetry import trace  # noqa: PLC0415 - slow, and rarely wanted
    except ImportError:
        return None
    except Exception:  # it looks for plugins, and raises StopIteration where a program has none
        logger.warning("there are no spans: opentelemetry cannot be imported", exc_info=True)
        return None
    return trace


def _w3c() -> TextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator()


def _context() -> object:
    from opentelemetry import context  # noqa: PLC0415

    return context.get_current()
