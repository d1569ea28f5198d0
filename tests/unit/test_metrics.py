"""Metrics of instances, read as a scrape reads them from the real prometheus-client."""

import json
import re
import sys
import urllib.request
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_datadist import LLMDataDist, LLMException, LLMRole, LLMStatusCode
from llm_datadist._engine.transfer.counters import BUCKET_BOUNDS, TransferCounters
from llm_datadist._types.stats import (
    CacheStats,
    FaultStats,
    InstanceStats,
    LeaseStats,
    LinkStats,
    PoolStats,
)
from llm_datadist.metrics import Collector, serve_metrics
from support.setup import LOOPBACK, started

PAGES = Path(__file__).parents[2] / "docs" / "howto"
HERE = {"cluster_id": "7"}
PULLS = {"operation": "pull_blocks", "path": "host"}
PUSHES = {"operation": "push_cache", "path": "tcp"}


class Instance(LLMDataDist):
    """An instance with given figures; it is not initialized without them."""

    found = None

    def stats(self):
        return self.found or super().stats()


def an_instance(cluster_id=7):
    counters = TransferCounters()
    counters.add("pull_blocks", "host", 4096, 10_000)
    counters.add("pull_blocks", "host", 8192, 20_000)
    counters.add("push_cache", "tcp", 100, 99_000_000_000)
    counters.add_failure("push_cache", "tcp", LLMStatusCode.LLM_TIMEOUT)
    instance = Instance(LLMRole.MIX, cluster_id)
    instance.found = InstanceStats(
        cluster_id=cluster_id,
        transfers=counters.stats(),
        links=LinkStats(1, 2, 3, 4, 5, 6),
        pools=(PoolStats("host", 100, 60, 40, 30, 2),),
        caches=CacheStats(1, 20, 3, 40, 5, 6, 7, 80),
        leases=LeaseStats(1, 2, 30),
        faults=FaultStats(3, 4096, 2),
    )
    return instance


class Scrape:
    """What a registry with a collector of these instances exposes."""

    def __init__(self, *instances):
        registry = prometheus_client.CollectorRegistry()
        registry.register(Collector(*instances))
        self.text = prometheus_client.generate_latest(registry).decode()
        self.families = {each.name: each for each in text_string_to_metric_families(self.text)}
        self.samples = [sample for each in self.families.values() for sample in each.samples]

    def value(self, name, **labels):
        """The value of the only sample of a name with these labels of cluster 7."""
        (found,) = (
            sample.value
            for sample in self.samples
            if sample.name == f"llm_datadist_{name}" and sample.labels == HERE | labels
        )
        return found

    def names(self):
        return {sample.name for sample in self.samples}


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("initialized", {}, 1),
        ("transfer_bytes_total", PULLS, 12288),
        ("transfer_bytes_total", PUSHES, 100),
        ("transfer_errors_total", PUSHES | {"status": "LLM_TIMEOUT"}, 1),
        ("transfer_duration_seconds_count", PULLS, 2),
        ("transfer_duration_seconds_sum", PULLS, 3e-5),
        ("links", {"state": "connecting"}, 1),
        ("links", {"state": "linked"}, 2),
        ("links", {"state": "unlinking"}, 3),
        ("links", {"state": "lost"}, 4),
        ("links", {"state": "reconnecting"}, 5),
        ("relinks_total", {}, 6),
        ("pool_size_bytes", {"pool": "host"}, 100),
        ("pool_used_bytes", {"pool": "host"}, 60),
        ("pool_largest_free_bytes", {"pool": "host"}, 30),
        ("caches", {"kind": "registered"}, 1),
        ("cache_bytes", {"kind": "registered"}, 20),
        ("caches", {"kind": "allocated"}, 3),
        ("cache_bytes", {"kind": "allocated"}, 40),
        ("registered_addrs", {}, 5),
        ("directory_bytes", {}, 80),
        ("leases", {"side": "held"}, 1),
        ("leases", {"side": "lent"}, 2),
        ("lent_blocks", {}, 30),
        ("faulted_blocks", {}, 3),
        ("faulted_bytes", {}, 4096),
        ("remaps_total", {}, 2),
    ],
)
def test_a_metric_has_what_the_statistics_have(name, labels, value):
    assert Scrape(an_instance()).value(name, **labels) == pytest.approx(value)


def test_a_bucket_has_all_shorter_durations():
    scrape, name = Scrape(an_instance()), "transfer_duration_seconds_bucket"
    bounds = [str(bound) for bound in BUCKET_BOUNDS]
    pulls = [scrape.value(name, **PULLS, le=bound) for bound in (*bounds, "+Inf")]
    assert pulls == [0, 1, *[2] * (len(bounds) - 1)]
    pushes = [scrape.value(name, **PUSHES, le=bound) for bound in (*bounds, "+Inf")]
    assert pushes == [*[0] * len(bounds), 1]


def test_the_label_cluster_id_tells_instances_apart():
    scrape = Scrape(an_instance(7), an_instance(8))
    relinks = (s for s in scrape.samples if s.name == "llm_datadist_relinks_total")
    clusters = [sample.labels["cluster_id"] for sample in relinks]
    assert clusters == ["7", "8"]


def test_an_instance_that_is_not_initialized_says_that_only():
    scrape = Scrape(Instance(LLMRole.MIX, 7), an_instance(8))
    assert scrape.value("initialized") == 0
    of_it = [sample.name for sample in scrape.samples if sample.labels["cluster_id"] == "7"]
    assert of_it == ["llm_datadist_initialized"]


def test_registering_does_not_read_an_instance():
    class Unread(LLMDataDist):
        def stats(self):
            raise AssertionError

    prometheus_client.CollectorRegistry().register(Collector(Unread(LLMRole.MIX, 1)))


def test_what_is_no_instance_or_the_same_one_twice_is_refused():
    with pytest.raises(TypeError, match="instance 1 must be LLMDataDist"):
        Collector(an_instance(), "x")
    with pytest.raises(LLMException, match="two instances have cluster id 7") as raised:
        Collector(an_instance(), an_instance())
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_without_prometheus_client_the_text_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for call in (lambda: Collector(an_instance()), lambda: serve_metrics(an_instance(), 0)):
        with pytest.raises(ImportError, match=r"pip install 'llm-datadist\[metrics\]'"):
            call()


def read(address, path="metrics"):
    url = f"http://{address[0]}:{address[1]}/{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_metrics_are_served_until_the_server_is_closed():
    instance = started(7)
    with serve_metrics(instance, 0) as server:
        assert server.address[0] == LOOPBACK
        assert 'llm_datadist_links{cluster_id="7",state="linked"} 0.0' in read(server.address)
        instance.finalize()
        assert 'llm_datadist_initialized{cluster_id="7"} 0.0' in read(server.address)
    server.close()
    with pytest.raises(OSError, match="refused"):
        read(server.address)


@pytest.mark.slow
def test_an_address_that_cannot_be_had_is_named():
    with serve_metrics(an_instance(), 0) as server:
        port = server.address[1]
        with pytest.raises(LLMException, match=rf"{LOOPBACK}:{port}: .*in use.*; ") as raised:
            serve_metrics(an_instance(), port)
    assert raised.value.status_code is LLMStatusCode.LLM_FAILED
    assert raised.value.operation == "serve_metrics"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, 0), TypeError, "instance 0 must be LLMDataDist"),
        ((an_instance(), "9100"), TypeError, "port must be int"),
        ((an_instance(), 65536), ValueError, "port must be in"),
        ((an_instance(), -1), ValueError, "port must be in"),
        ((an_instance(), 0, None), TypeError, "host must be str"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        serve_metrics(*arguments)


def test_the_page_has_every_metric_with_its_labels():
    page = (PAGES / "metrics.md").read_text()
    rows = re.findall(r"^\| `(llm_datadist_\w+)` \| (\w+) \| ([^|]*)\|", page, re.MULTILINE)
    shown = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    expected = {}
    for family in Scrape(an_instance()).families.values():
        name = family.name + "_total" * (family.type == "counter")
        labels = {label for sample in family.samples for label in sample.labels}
        expected[name] = family.type, labels - {"cluster_id", "le"}
    assert shown == expected


def test_the_dashboard_asks_for_metrics_that_there_are():
    dashboard = json.loads((PAGES / "grafana-dashboard.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"llm_datadist_\w+", target["expr"])
    }
    assert len(asked) > 8
    assert asked <= Scrape(an_instance()).names()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_the_programs_of_the_page_run(monkeypatch, capsys):
    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    page = (PAGES / "metrics.md").read_text()
    with started(1) as prefill, started(2) as decode:
        names = {"prefill": prefill, "decode": decode}
        for program in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(program.replace("9108", "0"), names)
        assert registry.get_sample_value("llm_datadist_initialized", {"cluster_id": "2"}) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "0 0 0"
    assert json.loads(shown[1])["cluster_id"] == 2
