"""The connector's figures in vLLM's classes, shown by the real prometheus-client, without vLLM."""

import pickle

import prometheus_client
import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from llm_datadist.integrations.vllm import vllm_metrics
from llm_datadist.integrations.vllm.transfer_counts import FAMILIES, TransferCounts
from llm_datadist.integrations.vllm.vllm_metrics import (
    ConnectorMetrics,
    ConnectorStats,
    metrics_for,
)

ENGINES = {0: ["m", "0"], 1: ["m", "1"]}
ZERO = {"model_name": "m", "engine": "0"}
ONE = {"model_name": "m", "engine": "1"}


class Server:
    """An API server of two engines, with a registry of its own."""

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()

        def here(kind):
            return lambda **arguments: kind(registry=self.registry, **arguments)

        self.arguments = {
            "vllm_config": None,
            "metric_types": {kind: here(kind) for kind in (Gauge, Counter, Histogram)},
            "labelnames": ["model_name", "engine"],
            "per_engine_labelvalues": ENGINES,
        }

    def value(self, name, **labels):
        return self.registry.get_sample_value(f"vllm:llm_datadist_{name}", labels)


@pytest.fixture
def server():
    return Server()


def test_figures_of_engines_do_not_mix(server):
    metrics = ConnectorMetrics(**server.arguments)
    metrics.observe({"requests_fetched": {"host": 2, "tcp": 1}}, engine_idx=1)
    metrics.observe({"requests_fetched": {"host": 1}}, engine_idx=1)
    metrics.observe({"fetch_seconds": {"host": [0.25, 0.5]}})
    assert server.value("requests_fetched_total", path="host", **ONE) == 3
    assert server.value("requests_fetched_total", path="tcp", **ONE) == 1
    assert server.value("requests_fetched_total", path="host", **ZERO) is None
    assert server.value("fetch_seconds_count", path="host", **ZERO) == 2
    assert server.value("fetch_seconds_sum", path="host", **ZERO) == 0.75


def test_every_metric_can_be_shown(server):
    metrics = ConnectorMetrics(**server.arguments)
    counts = TransferCounts()
    for name, family in FAMILIES.items():
        labels = [f"a {label}" for label in family.labels]
        if family.kind == "histogram":
            counts.observe(name, *labels, value=1.0)
        else:
            counts.add(name, *labels)
    metrics.observe(counts.take())
    text = prometheus_client.generate_latest(server.registry).decode()
    shown = {family.name for family in text_string_to_metric_families(text)}
    assert {f"vllm:llm_datadist_{name}" for name in FAMILIES} <= shown
    assert server.value("fetch_errors_total", path="a path", status="a status", **ZERO) == 1


def test_gauges_begin_at_zero_and_follow_the_changes(server):
    metrics = ConnectorMetrics(**server.arguments)
    assert server.value("leases_held", **ONE) == 0
    metrics.observe({"leases_held": {"": 3}}, 1)
    metrics.observe({"leases_held": {"": -1}}, 1)
    assert server.value("leases_held", **ONE) == 2
    assert server.value("leases_held", **ZERO) == 0


@pytest.mark.expects_log("/metrics has no figures of the connector")
@pytest.mark.parametrize("problem", ["more arguments", "no kind of metric"])
def test_another_way_of_metrics_does_not_keep_the_server_from_starting(server, problem):
    if problem == "more arguments":
        server.arguments["of_the_future"] = 1
    else:
        server.arguments["metric_types"].pop(Gauge)
    assert metrics_for(**server.arguments) is None


def test_the_server_gets_the_metrics(server):
    assert isinstance(metrics_for(*server.arguments.values()), ConnectorMetrics)


def test_stats_of_workers_travel_and_add_up():
    """As vLLM does it: pickled from the workers, added up, and sent on as plain values."""
    first, second = (
        pickle.loads(pickle.dumps(ConnectorStats({"requests_fetched": {"host": number}})))
        for number in (1, 2)
    )
    total = first.aggregate(second)
    assert not total.is_empty()
    again = ConnectorStats(total.to_dict())
    assert again.reduce()["Requests fetched"] == 3
    again.reset()
    assert again.is_empty()
    assert ConnectorStats().is_empty()


def test_the_classes_are_those_of_this_vllm_if_it_has_them():
    bases = {ConnectorStats.__base__, ConnectorMetrics.__base__}
    assert bases == {vllm_metrics.KVConnectorStats, vllm_metrics.KVConnectorPromMetrics}
