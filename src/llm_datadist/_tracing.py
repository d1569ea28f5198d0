"""Request ids of transfer calls, and the OpenTelemetry spans of their transfers.

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
    from types import ModuleType

    from llm_datadist._errors import LLMException

__all__ = ["MAX_REQUEST_ID", "EndedTransfer", "RequestTrace", "request_trace"]

logger = logging.getLogger("llm_datadist")

MAX_REQUEST_ID = 128
_TRACER = "llm_datadist"


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
    """

    operation: str
    cluster_id: int
    address: tuple[str, int] | None
    path: str
    num_bytes: int
    duration_ns: int
    error: LLMException | None = None


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

    def end(self, transfer: EndedTransfer) -> None:
        """Make the span of a transfer that has just ended. What fails in it is logged."""
        api = _api()
        if api is None:
            return
        try:
            self._make_span(api, transfer)
        except Exception:  # of the program's own samplers and processors
            logger.warning("%s: no span was made", self.named(transfer.operation), exc_info=True)

    def _make_span(self, api: ModuleType, transfer: EndedTransfer) -> None:
        end_ns = time.time_ns()
        span = api.get_tracer(_TRACER).start_span(
            transfer.operation,
            context=self._parent,
            kind=api.SpanKind.CLIENT,
            attributes=self._attributes(transfer),
            start_time=end_ns - transfer.duration_ns,
        )
        if transfer.error is not None:
            span.set_status(api.Status(api.StatusCode.ERROR, str(transfer.error)))
        span.end(end_ns)

    def _attributes(self, transfer: EndedTransfer) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {
            "llm_datadist.operation": transfer.operation,
            "llm_datadist.request_id": self.request_id,
            "llm_datadist.peer.cluster_id": str(transfer.cluster_id),
            "llm_datadist.path": transfer.path,
            "llm_datadist.bytes": transfer.num_bytes,
            "llm_datadist.status": "LLM_SUCCESS",
        }
        if self._num_blocks is not None:
            attributes["llm_datadist.blocks"] = self._num_blocks
        if transfer.address is not None:
            address, port = transfer.address
            attributes |= {"network.peer.address": address, "network.peer.port": port}
        if transfer.error is not None:
            status = transfer.error.status_code.name
            attributes |= {"llm_datadist.status": status, "error.type": status}
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


def _context() -> object:
    from opentelemetry import context  # noqa: PLC0415

    return context.get_current()
