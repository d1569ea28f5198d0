"""The connector as vLLM calls it, over a stand-in for vLLM's interface of each version."""

from __future__ import annotations

import inspect
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import prometheus_client
import pytest

from support.vllm.interface import (
    METHODS,
    SLEEP_METHODS,
    VERSIONS,
    KVConnectorRole,
    installed,
    transfer_config,
)
from support.vllm.objects import (
    FullAttentionSpec,
    Tensor,
    attention_layer,
    kv_cache_config,
    request,
    vllm_config,
)

LAYERS, BLOCKS, HEADS, BLOCK, SIZE = 2, 12, 2, 4, 8
NAMES = [f"model.layers.{number}.self_attn.attn" for number in range(LAYERS)]
TOKENS = 10
NOTHING = SimpleNamespace(
    preempted_req_ids=(),
    scheduled_new_reqs=(),
    scheduled_cached_reqs=SimpleNamespace(req_ids=(), new_block_ids=(), num_computed_tokens=()),
)
IDLE = SimpleNamespace(attn_metadata=None)


@pytest.fixture(params=VERSIONS)
def connector(request):
    """The connector's class, over the interface of a version."""
    with installed(request.param) as connector:
        yield connector


@pytest.fixture
def make(connector):
    """Makes engines, and closes them."""
    made = []

    def make(role, **options):
        made.append(Engine(connector, role, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.worker.shutdown()


class Engine:
    """Both sides of the connector in one process, and the KV memory of one worker."""

    def __init__(self, connector, role, *, groups=(NAMES,), **extra):
        self.kv = np.zeros((LAYERS, BLOCKS, HEADS, BLOCK, 2 * SIZE), np.float32)
        caches = kv_cache_config(
            groups, BLOCKS, BLOCK, FullAttentionSpec,
            num_kv_heads=HEADS, head_size=SIZE, dtype="torch.float32",
        )  # fmt: skip
        config = vllm_config(
            kv_heads=HEADS, attention=dict.fromkeys(NAMES, attention_layer("CPU_ATTN", "vec"))
        )
        config.kv_transfer_config = transfer_config(role, **extra)
        self.scheduler = connector(config, KVConnectorRole.SCHEDULER, caches)
        self.worker = connector(config, KVConnectorRole.WORKER, caches)
        self.worker.register_kv_caches(dict(zip(NAMES, map(Tensor, self.kv), strict=True)))
        self.num_groups = len(groups)
        self.meet()

    def meet(self):
        """Tell the scheduler side the address of the worker."""
        self.scheduler.set_xfer_handshake_metadata_pp_aware(
            {(0, 0): self.worker.get_handshake_metadata()}
        )

    def step(self):
        """Run a step without the model; returns what has ended."""
        self.worker.bind_connector_metadata(self.scheduler.build_connector_meta(NOTHING))
        self.worker.start_load_kv(IDLE)
        self.worker.wait_for_save()
        results = self.worker.get_transfer_results(set())
        self.worker.clear_connector_metadata()
        self.scheduler.update_connector_output(results)
        return results

    def until(self, request_id, within_s=10.0):
        """Step until a request's transfer has ended; returns the step's results."""
        deadline = time.monotonic() + within_s
        while True:
            results = self.step()
            if request_id in results.finished_sending | results.finished_recving:
                return results
            assert time.monotonic() < deadline, f"{request_id} has not ended"

    def _allocate(self, one, blocks, num_external):
        lists = tuple([list(blocks)] * self.num_groups)
        held = SimpleNamespace(get_block_ids=lambda: lists)
        self.scheduler.update_state_after_alloc(one, held, num_external)
        return lists

    def offer(self, request_id, blocks):
        """Prefill a prompt into blocks; returns what the answer has."""
        one = request(request_id, range(TOKENS), {"do_remote_decode": True})
        self.scheduler.on_new_request(one)
        assert self.scheduler.get_num_new_matched_tokens(one, 0) == (0, False)
        lists = self._allocate(one, blocks, 0)
        self.step()
        is_kept, params = self.scheduler.request_finished_all_groups(one, lists)
        assert is_kept
        self.step()
        return params

    def load(self, request_id, params, blocks):
        """Load a prompt into blocks; returns the step's results and the failed blocks."""
        one = request(request_id, range(TOKENS), params)
        self.scheduler.on_new_request(one)
        num_tokens, is_async = self.scheduler.get_num_new_matched_tokens(one, 0)
        assert (num_tokens, is_async) == (TOKENS - 1, True)
        self._allocate(one, blocks, num_tokens)
        return self.until(request_id), self.worker.get_block_ids_with_load_errors()


def accepts(method, parameters):
    """Whether a method can be called with these names, by position and by name."""
    given = dict.fromkeys(parameters, object())
    signature = inspect.signature(method)
    signature.bind(object(), *given.values())
    signature.bind(object(), **given)


@pytest.mark.parametrize("name", sorted(METHODS | SLEEP_METHODS))
def test_what_vllm_calls_is_served(connector, name):
    method = inspect.getattr_static(connector, name)
    accepts(getattr(method, "__func__", method), (METHODS | SLEEP_METHODS)[name])


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("0.32.0", ""),
        ("0.33.1", ""),
        ("0.33.0+cpu", ""),
        ("0.34.0", "written for vLLM 0.32 and 0.33, not for 0.34.0"),
        ("0.3.0", "not for 0.3.0"),
    ],
)
@pytest.mark.expects_log("written for vLLM")
def test_a_version_that_is_not_known_is_named(caplog, version, text):
    with installed(version) as connector:
        Engine(connector, "kv_producer").worker.shutdown()
    assert (text in caplog.text) if text else ("written for" not in caplog.text)


def test_a_prompt_moves_and_its_blocks_come_back(make):
    producer, consumer = make("kv_producer"), make("kv_consumer")
    producer.kv[:, [3, 7, 5]] = 4.0
    results, failed = consumer.load("d", producer.offer("p", [3, 7, 5]), [1, 2, 4])
    assert (results.failed_recving, failed) == (set(), set())
    assert (consumer.kv[:, [1, 2, 4]] == 4.0).all()
    assert producer.until("p").finished_sending == {"p"}


def test_an_engine_with_both_roles_prefills_and_decodes(make):
    engines = make("kv_both"), make("kv_both")
    for value, (first, second) in enumerate((engines, engines[::-1]), 1):
        first.kv[:, [3, 7, 5]] = value
        _, failed = second.load(f"d{value}", first.offer(f"p{value}", [3, 7, 5]), [1, 2, 4])
        assert failed == set()
        assert (second.kv[:, [1, 2, 4]] == value).all()
        first.until(f"p{value}")


def test_the_figures_of_both_sides_reach_vllm(make, connector):
    producer, consumer = make("kv_producer"), make("kv_consumer")
    assert consumer.worker.get_kv_connector_stats() is None
    params = producer.offer("p", [3, 7, 5])
    held = producer.worker.get_kv_connector_stats()
    assert held.data == {"requests_held": {"": 1}}
    consumer.load("d", params, [1, 2, 4])
    producer.until("p")
    stats = consumer.worker.get_kv_connector_stats()
    assert stats.data["requests_fetched"] == {"host": 1}
    assert stats.data["fetched_bytes"] == {"host": consumer.kv[:, :3].nbytes}
    assert consumer.worker.get_kv_connector_stats() is None
    released = {"requests_held": {"": -1}, "requests_released": {"fetched": 1}}
    assert producer.worker.get_kv_connector_stats().data == released
    assert connector.build_kv_connector_stats(stats.to_dict()).reduce()["Requests fetched"] == 1


@pytest.mark.expects_log("will be recomputed")
def test_the_scheduler_counts_offers_that_it_cannot_use(make):
    consumer = make("kv_consumer")
    one = request("d", range(TOKENS), {"do_remote_prefill": True})
    consumer.scheduler.get_num_new_matched_tokens(one, 0)
    stats = consumer.scheduler.get_kv_connector_stats()
    assert stats.data == {"requests_recomputed": {"offer": 1}}


def test_metrics_are_made_of_what_vllm_passes(connector):
    registry = prometheus_client.CollectorRegistry()
    kinds = (prometheus_client.Gauge, prometheus_client.Counter, prometheus_client.Histogram)
    types = {kind: partial(kind, registry=registry) for kind in kinds}
    config = SimpleNamespace(kv_transfer_config=None)
    metrics = connector.build_prom_metrics(config, types, ["engine"], {0: ["0"]})
    metrics.observe({"requests_fetched": {"host": 2}}, 0)
    name = "vllm:llm_datadist_requests_fetched_total"
    assert registry.get_sample_value(name, {"engine": "0", "path": "host"}) == 2


def test_workers_are_ordered_by_pipeline_rank_then_tensor_rank(make):
    engine = make("kv_both", mode="push")
    metadata = type(engine.worker.get_handshake_metadata())
    engine.scheduler.set_xfer_handshake_metadata_pp_aware(
        {
            (pp, tp): metadata(f"worker {pp}.{tp}", (2 * pp, 2 * pp + 2))
            for tp in (1, 0)
            for pp in (1, 0)
        }
    )
    names = ["worker 0.0", "worker 0.1", "worker 1.0", "worker 1.1"]
    assert engine.scheduler._pulls.ranks == engine.scheduler._pushes.ranks == names
    assert engine.scheduler._pushes.stages == ((0, 2), (2, 4))
    engine.scheduler.set_xfer_handshake_metadata({1: metadata("b"), 0: metadata("a")})
    assert engine.scheduler._pulls.ranks == ["a", "b"]


def test_a_consumer_that_does_not_listen_knows_its_stages(make):
    engine = make("kv_consumer", mode="push")
    assert engine.worker.get_handshake_metadata().rank is None
    assert engine.scheduler._pushes.ranks == []
    assert engine.scheduler._pushes.stages == ((0, LAYERS),)


@pytest.mark.expects_log("will be recomputed", "link_clusters")
@pytest.mark.parametrize("groups", [(NAMES,), (NAMES[:1], NAMES[1:])])
def test_what_cannot_be_loaded_is_in_the_results(make, groups):
    """With one KV cache group its blocks are, with several the request is."""
    producer, consumer = make("kv_producer", groups=groups), make("kv_consumer", groups=groups)
    params = producer.offer("p", [3, 7, 5])
    producer.worker.shutdown()
    results, failed = consumer.load("d", params, [1, 2, 4])
    assert results.finished_recving == {"d"}
    expected = (set(), {1, 2, 4}) if len(groups) == 1 else ({"d"}, set())
    assert (results.failed_recving, failed) == expected


@pytest.mark.expects_log("will be recomputed", "link_clusters")
def test_an_engine_that_sleeps_withdraws_its_memory_and_reports_what_it_holds(make):
    producer, consumer = make("kv_producer"), make("kv_consumer")
    params = producer.offer("p", [3, 7, 5])
    before = producer.worker.get_handshake_metadata().rank
    producer.worker.unregister_kv_caches()
    producer.worker.unregister_kv_caches()
    _, failed = consumer.load("d", params, [1, 2, 4])
    assert failed == {1, 2, 4}
    assert not consumer.kv.any()
    producer.worker.restore_kv_caches()
    producer.worker.restore_kv_caches()
    producer.meet()
    assert producer.worker.get_handshake_metadata().rank.cluster_id != before.cluster_id
    assert producer.step().finished_sending == {"p"}
    figures = producer.worker.get_kv_connector_stats().data
    assert figures == {"requests_held": {"": 0}, "requests_released": {"closed": 1}}
    producer.kv[:, [3, 7, 5]] = 4.0
    _, failed = consumer.load("e", producer.offer("q", [3, 7, 5]), [1, 2, 4])
    assert failed == set()
    assert (consumer.kv[:, [1, 2, 4]] == 4.0).all()
    assert producer.until("q").finished_sending == {"q"}


def test_an_engine_that_never_slept_has_nothing_to_restore(make):
    engine = make("kv_producer")
    before = engine.worker.get_handshake_metadata().rank
    engine.worker.restore_kv_caches()
    assert engine.worker.get_handshake_metadata().rank == before
