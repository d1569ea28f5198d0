"""The connector's counts in the classes in which vLLM logs them and shows them to Prometheus.

A vLLM without such classes does not ask for them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.transfer_counts import FAMILIES, Payload, merge, summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
    )
except ImportError:
    KVConnectorPromMetrics = KVConnectorStats = object

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_PREFIX = "vllm:llm_datadist_"  # vLLM unregisters the metrics that begin with "vllm:"
_BUCKETS_S = tuple(0.0005 * 2**power for power in range(16))  # 0.5 ms to 16.4 s


class ConnectorStats(KVConnectorStats):
    """Counts of one interval, of one worker or of several together.

    Attributes:
        data: The counts; vLLM sends them from process to process.
    """

    def __init__(self, data: Payload | None = None) -> None:
        self.data: Payload = {} if data is None else data

    def to_dict(self) -> Payload:
        """Return the counts."""
        return self.data

    def reset(self) -> None:
        """Forget the counts."""
        self.data = {}

    def aggregate(self, other: ConnectorStats) -> ConnectorStats:
        """Add the counts of another object to this one, which is returned."""
        merge(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """Return the figures for vLLM's log."""
        return summary(self.data)

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not self.data


class ConnectorMetrics(KVConnectorPromMetrics):
    """Prometheus metrics of the connector, in the process that serves `/metrics`.

    Args:
        vllm_config: vLLM's configuration.
        metric_types: prometheus_client's Gauge, Counter, Histogram -> what vLLM has in their place.
        labelnames: vLLM's labels.
        per_engine_labelvalues: Their values, by the index of the engine.
    """

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Mapping[type, Any],
        labelnames: Sequence[str],
        per_engine_labelvalues: Mapping[int, Sequence[object]],
    ) -> None:
        if KVConnectorPromMetrics is not object:
            super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        makers = {known.__name__.lower(): made for known, made in metric_types.items()}
        more: dict[str, dict[str, Any]] = {
            "counter": {},
            "gauge": {"multiprocess_mode": "sum"},  # each API server shows the changes it got
            "histogram": {"buckets": list(_BUCKETS_S)},
        }
        self._label_values = {
            engine: tuple(values) for engine, values in per_engine_labelvalues.items()
        }
        self._metrics = {
            name: makers[family.kind](
                name=_PREFIX + name,
                documentation=family.help,
                labelnames=[*labelnames, *family.labels],
                **more[family.kind],
            )
            for name, family in FAMILIES.items()
        }
        self._gauges: dict[tuple[str, int], int] = {}
        for engine in self._label_values:
            self.observe({name: {"": 0} for name in FAMILIES if not FAMILIES[name].labels}, engine)

    def observe(self, transfer_stats_data: Payload, engine_idx: int = 0) -> None:
        """Add the counts of one interval of an engine."""
        for name, values in transfer_stats_data.items():
            for key, value in values.items():
                self._observe(name, key, value, engine_idx)

    def _observe(self, name: str, key: str, value: Any, engine: int) -> None:
        family = FAMILIES[name]
        labels = key.split("/") if family.labels else ()
        metric = self._metrics[name].labels(*self._label_values[engine], *labels)
        if family.kind == "counter":
            metric.inc(value)
        elif family.kind == "histogram":
            for each in value:
                metric.observe(each)
        else:
            held = self._gauges[name, engine] = self._gauges.get((name, engine), 0) + value
            metric.set(held)


def metrics_for(*arguments: Any, **named: Any) -> ConnectorMetrics | None:
    """Make the metrics from whatever this vLLM passes, or log why there are none.

    The server must start all the same.
    """
    try:
        return ConnectorMetrics(*arguments, **named)
    except Exception as error:
        logger.warning(
            "/metrics has no figures of the connector, because this vLLM offers metrics in another "
            "way than those that the connector knows: %s",
            str(error) or type(error).__name__,
        )
        return None
