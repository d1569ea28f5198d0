"""OpenTelemetry as a program sets it up, with spans that stay in memory."""

from __future__ import annotations

import pytest

from llm_datadist import _tracing

trace = pytest.importorskip("opentelemetry.trace", reason="needs opentelemetry-sdk")
sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)


class Spans:
    """A tracer provider, and the spans that have ended with it."""

    def __init__(self):
        self.provider = sdk.TracerProvider(shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def current(self, name="request"):
        """A span of the program, as a context manager."""
        return trace.get_tracer("program").start_as_current_span(name)

    def ended(self):
        """The spans of this library's calls that have ended, oldest first."""
        return self._of_kind(trace.SpanKind.CLIENT)

    def served(self):
        """The spans of transfers that peers have made, as they say."""
        return self._of_kind(trace.SpanKind.SERVER)

    def _of_kind(self, kind):
        spans = self._exporter.get_finished_spans()
        library = [span for span in spans if span.instrumentation_scope.name == "llm_datadist"]
        return [span for span in library if span.kind is kind]


def traceparent_of(span):
    """A span's context, by W3C Trace Context."""
    made = span.context
    return f"00-{made.trace_id:032x}-{made.span_id:016x}-{made.trace_flags:02x}"


@pytest.fixture
def spans(monkeypatch):
    """The provider of this process, for one test: OpenTelemetry's own call sets it for ever."""
    made = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made.provider)
    monkeypatch.setattr(_tracing, "_found", [])
    return made
