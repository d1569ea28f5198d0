"""Counts of transfers between two reports to vLLM, as plain values that travel between processes.

A worker counts its part of each request, so with N workers a request counts N times.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, NamedTuple, TypeAlias

Payload: TypeAlias = dict[str, dict[str, Any]]
"""Family -> values of its labels, joined by "/" -> number, or list of observations."""

_MOST_OBSERVATIONS = 4096
"""Of one report: a vLLM that never asks for it must not cost memory."""


class Family(NamedTuple):
    """Metrics of one name.

    Attributes:
        kind: Its type. A gauge counts changes; who shows it adds them up.
        help: What it says.
        labels: Its labels beside those of vLLM.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


FAMILIES = {
    "requests_fetched": Family(
        "counter", "Requests whose blocks a worker of a consumer has received.", ("path",)
    ),
    "fetched_bytes": Family("counter", "Bytes of these blocks.", ("path",)),
    "fetch_seconds": Family(
        "histogram", "Time from vLLM's order to the last byte of a request.", ("path",)
    ),
    "requests_recomputed": Family(
        "counter", "Requests that a consumer computes itself, wholly or in part.", ("reason",)
    ),
    "fetch_errors": Family(
        "counter", "Errors of a consumer's transfers, also of repeated ones.", ("path", "status")
    ),
    "leases_held": Family("gauge", "Leases that a consumer holds on blocks of producers."),
    "requests_held": Family("gauge", "Requests whose blocks a producer keeps for consumers."),
    "requests_released": Family(
        "counter", "Requests whose blocks a producer has given back to vLLM.", ("reason",)
    ),
}
"""All metrics, by the name under which they are counted."""


class TransferCounts:
    """Counts since the last `take`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payload: Payload = {}

    def add(self, name: str, *labels: str, by: int = 1) -> None:
        """Count for a counter, or change a gauge."""
        with self._lock:
            values = self._payload.setdefault(name, {})
            key = "/".join(labels)
            values[key] = values.get(key, 0) + by

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Note one value of a histogram."""
        with self._lock:
            values = self._payload.setdefault(name, {}).setdefault("/".join(labels), [])
            if len(values) < _MOST_OBSERVATIONS:
                values.append(value)

    def take(self) -> Payload:
        """Return what was counted since the last call; empty if nothing was."""
        if not self._payload:
            return {}
        with self._lock:
            taken, self._payload = self._payload, {}
            return taken


def merge(total: Payload, added: Payload) -> None:
    """Add the counts of `added` to `total`."""
    for name, values in added.items():
        sums = total.setdefault(name, {})
        for key, value in values.items():
            if isinstance(value, list):
                sums[key] = [*sums.get(key, ()), *value]
            else:
                sums[key] = sums.get(key, 0) + value


def summary(payload: Payload) -> dict[str, int | float]:
    """Return the figures of an interval for one line of vLLM's log."""
    seconds = [value for values in payload.get("fetch_seconds", {}).values() for value in values]
    mean_s = sum(seconds) / len(seconds) if seconds else 0.0
    return {
        "Requests fetched": _sum(payload, "requests_fetched"),
        "Mean fetch time (ms)": round(mean_s * 1e3, 3),
        "MB fetched": round(_sum(payload, "fetched_bytes") / 1e6, 3),
        "Requests recomputed": _sum(payload, "requests_recomputed"),
        "Fetch errors": _sum(payload, "fetch_errors"),
        "Requests released": _sum(payload, "requests_released"),
    }


def _sum(payload: Payload, name: str) -> int:
    return sum(payload.get(name, {}).values())
