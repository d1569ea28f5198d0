"""Prometheus metrics of instances *(extension)*; needs the extra `metrics` (prometheus-client).

Source: docs/howto/metrics.md.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple, final

from llm_datadist._datadist import LLMDataDist
from llm_datadist._errors import LLMStatusCode, fail, invalid
from llm_datadist._types.checks import check_instance, check_int, check_str
from llm_datadist._types.named_calls import names_call, names_calls
from llm_datadist._types.stats import Histogram

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from types import ModuleType, TracebackType
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric

    from llm_datadist._types.stats import InstanceStats

__all__ = ["Collector", "MetricsServer", "serve_metrics"]

_PORT_MAX = 65535


class _Family(NamedTuple):
    """Metrics of one name: `llm_datadist_<name>`, and "_total" after that of a counter.

    Attributes:
        kind: Its type.
        help: What it says.
        labels: Its labels beside `cluster_id`.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


_FAMILIES = {
    "initialized": _Family("gauge", "1 from init to finalize, else 0."),
    "transfer_duration_seconds": _Family(
        "histogram", "Duration of transfers that succeeded.", ("operation", "path")
    ),
    "transfer_bytes": _Family(
        "counter", "Bytes of transfers that succeeded.", ("operation", "path")
    ),
    "transfer_errors": _Family(
        "counter", "Transfers that failed, by status.", ("operation", "path", "status")
    ),
    "links": _Family("gauge", "Links, by state.", ("state",)),
    "relinks": _Family("counter", "Lost links that were re-established."),
    "pool_size_bytes": _Family("gauge", "Size of a memory pool.", ("pool",)),
    "pool_used_bytes": _Family("gauge", "Allocated bytes of a memory pool.", ("pool",)),
    "pool_largest_free_bytes": _Family("gauge", "Longest free run of a memory pool.", ("pool",)),
    "caches": _Family("gauge", "Live caches, registered or allocated.", ("kind",)),
    "cache_bytes": _Family("gauge", "Bytes of live caches.", ("kind",)),
    "registered_addrs": _Family("gauge", "Addresses that count for max_registered_addrs."),
    "directory_bytes": _Family("gauge", "Length of the directory that peers read."),
    "leases": _Family("gauge", "Leases held on peers' blocks, and lent to peers.", ("side",)),
    "lent_blocks": _Family("gauge", "Blocks that peers have leased."),
    "faulted_blocks": _Family("gauge", "Local blocks and slots that have a fault mark."),
    "faulted_bytes": _Family("gauge", "Local bytes that have a fault mark."),
    "remaps": _Family("counter", "Successful calls of remap_registered_memory."),
}


def _samples(stats: InstanceStats) -> Iterator[tuple[str, tuple[str, ...], float | Histogram]]:
    """Yield name, values of the labels, and value of every sample of an instance."""
    for entry in stats.transfers:
        where = entry.operation, entry.path
        yield "transfer_duration_seconds", where, entry.seconds
        yield "transfer_bytes", where, entry.num_bytes
        for status, number in entry.errors.items():
            yield "transfer_errors", (*where, status), number
    for state in ("connecting", "linked", "unlinking", "lost", "reconnecting"):
        yield "links", (state,), getattr(stats.links, state)
    yield "relinks", (), stats.links.relinked
    for pool in stats.pools:
        yield "pool_size_bytes", (pool.name,), pool.size_bytes
        yield "pool_used_bytes", (pool.name,), pool.used_bytes
        yield "pool_largest_free_bytes", (pool.name,), pool.largest_free_bytes
    caches = stats.caches
    yield "caches", ("registered",), caches.registered
    yield "caches", ("allocated",), caches.allocated
    yield "cache_bytes", ("registered",), caches.registered_bytes
    yield "cache_bytes", ("allocated",), caches.allocated_bytes
    yield "registered_addrs", (), caches.registered_addrs
    yield "directory_bytes", (), caches.directory_bytes
    yield "leases", ("held",), stats.leases.held
    yield "leases", ("lent",), stats.leases.lent
    yield "lent_blocks", (), stats.leases.lent_blocks
    yield "faulted_blocks", (), stats.faults.marked
    yield "faulted_bytes", (), stats.faults.marked_bytes
    yield "remaps", (), stats.faults.remaps


@names_calls
@final
class Collector:
    """Reads `LLMDataDist.stats` of instances whenever a registry of prometheus-client is scraped.

    Register it once: `prometheus_client.REGISTRY.register(Collector(instance))`. An instance that
    is not initialized has only the metric `llm_datadist_initialized`, which is 0 then.

    Args:
        instance: The first instance.
        *more: Further instances of this process; the label `cluster_id` tells them apart.

    Raises:
        ImportError: prometheus-client is not installed.
        TypeError: Something that is no LLMDataDist.
        LLMException: LLM_PARAM_INVALID: two instances have the same cluster id.
    """

    def __init__(self, instance: LLMDataDist, *more: LLMDataDist) -> None:
        _prometheus("Collector")
        self._instances: dict[int, LLMDataDist] = {}
        for place, each in enumerate((instance, *more)):
            check_instance(f"instance {place}", each, LLMDataDist)
            if self._instances.setdefault(each.cluster_id, each) is not each:
                raise invalid(
                    "Collector",
                    f"two instances have cluster id {each.cluster_id}",
                    "give them different ids, or each a Collector and a registry of its own",
                )

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not read the instances."""
        return []

    def collect(self) -> list[Metric]:
        """Return the metrics of all instances. Any thread."""
        core = _prometheus("Collector").core
        metrics = {
            name: getattr(core, f"{family.kind.capitalize()}MetricFamily")(
                f"llm_datadist_{name}", family.help, labels=("cluster_id", *family.labels)
            )
            for name, family in _FAMILIES.items()
        }
        for cluster_id, instance in self._instances.items():
            try:
                stats = instance.stats()
            except RuntimeError:  # not initialized
                metrics["initialized"].add_metric([str(cluster_id)], 0)
                continue
            metrics["initialized"].add_metric([str(cluster_id)], 1)
            for name, labels, value in _samples(stats):
                parts = _parts(value) if isinstance(value, Histogram) else (value,)
                metrics[name].add_metric([str(cluster_id), *labels], *parts)
        return list(metrics.values())


@final
class MetricsServer:
    """HTTP server of the metrics of one instance; made by `serve_metrics`.

    As a context manager it is closed at the end of the block. It serves in daemon threads.

    Attributes:
        address: Bound address (ip, port).
    """

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        host, port = server.server_address[:2]
        self.address: tuple[str, int] = str(host), int(port)

    def close(self) -> None:
        """Stop serving and free the port, within about half a second. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MetricsServer(address={self.address})"


@names_call
def serve_metrics(instance: LLMDataDist, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve the metrics of an instance over HTTP, at any path, until the server is closed.

    Whoever can connect can read them: there is no authentication and no encryption.

    Args:
        instance: The instance; it may be initialized later, or finalized before the server closes.
        port: TCP port in [0, 65535]; 0 chooses one.
        host: Address of this machine to listen at.

    Raises:
        ImportError: prometheus-client is not installed.
        TypeError: A wrong type.
        ValueError: A port outside its width.
        LLMException: LLM_FAILED: the address is in use or not of this machine.
    """
    operation = "serve_metrics"
    client = _prometheus(operation)
    check_int("port", port, 0, _PORT_MAX)
    check_str("host", host)
    registry = client.CollectorRegistry()
    registry.register(Collector(instance))
    try:
        server, thread = client.start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise fail(
            LLMStatusCode.LLM_FAILED,
            operation,
            f"{host}:{port}: {error.strerror or error}",
            "choose an address of this machine and a free port",
        ) from error
    return MetricsServer(server, thread)


def _prometheus(operation: str) -> ModuleType:
    """Import prometheus-client, which only programs with metrics need."""
    try:
        import prometheus_client  # noqa: PLC0415
        import prometheus_client.core  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            f"{operation}: metrics need prometheus-client ({error}); "
            "pip install 'llm-datadist[metrics]'"
        ) from error
    return prometheus_client


def _parts(histogram: Histogram) -> tuple[list[tuple[str, int]], float]:
    """Return the buckets as Prometheus has them, each with all smaller ones in it, and the sum."""
    bounds = (*map(str, histogram.bounds), "+Inf")
    return list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum
