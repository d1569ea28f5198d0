"""`LLMDataDistConnector`: implements vLLM's connector interface.

Only this module and `vllm_metrics` import vLLM. It translates calls to the schedulers (in the
scheduler process) and to `Worker` (in each worker).
Written for vLLM 0.32 and 0.33; what an older one does not call stays unused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from llm_datadist.integrations.vllm.options import parse_extra_config
from llm_datadist.integrations.vllm.scheduler.pull import PullScheduler
from llm_datadist.integrations.vllm.scheduler.push import PushScheduler
from llm_datadist.integrations.vllm.states import state_groups_of
from llm_datadist.integrations.vllm.step_orders import StepOrders
from llm_datadist.integrations.vllm.vllm_metrics import ConnectorStats, metrics_for
from llm_datadist.integrations.vllm.worker.worker import Worker, check_parallel

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
    from llm_datadist.integrations.vllm.options import ConnectorOptions
    from llm_datadist.integrations.vllm.transfer_counts import Payload
    from llm_datadist.integrations.vllm.vllm_metrics import ConnectorMetrics

logger: logging.Logger = logging.getLogger("llm_datadist.vllm")

_SUPPORTED = ("0.32", "0.33")


@dataclass
class ConnectorMetadata(KVConnectorMetadata):
    """Orders of the scheduler side to the workers, for one step."""

    orders: StepOrders = field(default_factory=StepOrders)


@dataclass
class HandshakeMetadata(KVConnectorHandshakeMetadata):
    """What a worker tells the scheduler side once.

    Attributes:
        rank: Its address; None if it does not listen.
        layers: Layers that it holds, as first and end; None if they are not known.
    """

    rank: RankAddress | None
    layers: tuple[int, int] | None = None


class LLMDataDistConnector(KVConnectorBase_V1, SupportsHMA):
    """Moves the KV blocks of prompts from producers to consumers over llm_datadist.

    Raises:
        ValueError: A bad `kv_connector_extra_config`, or a kind of parallelism that is not
            supported; the text says what to write.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._options: ConnectorOptions = parse_extra_config(transfer.kv_connector_extra_config)
        check_parallel(vllm_config.parallel_config)
        self._orders = StepOrders()
        self._pulls: PullScheduler | None = None
        self._pushes: PushScheduler | None = None
        self._worker: Worker | None = None
        self._kv_caches: dict[str, Any] = {}
        self._is_asleep = False
        if role != KVConnectorRole.SCHEDULER:
            return
        block_sizes = [int(g.kv_cache_spec.block_size) for g in kv_cache_config.kv_cache_groups]
        tp_size = vllm_config.parallel_config.tensor_parallel_size
        roles = {"is_producer": transfer.is_kv_producer, "is_consumer": transfer.is_kv_consumer}
        self._pulls = PullScheduler(
            self._orders,
            str(transfer.engine_id),
            block_sizes,
            tp_size,
            **roles,
            state_groups=state_groups_of(kv_cache_config),
        )
        if self._options.mode == "push":
            self._pushes = PushScheduler(self._orders, block_sizes[0], tp_size, **roles)
        if ".".join(str(vllm.__version__).split(".")[:2]) not in _SUPPORTED:
            logger.warning(
                "LLMDataDistConnector is written for vLLM %s, not for %s",
                " and ".join(_SUPPORTED),
                vllm.__version__,
            )
        if transfer.is_kv_consumer and transfer.kv_load_failure_policy != "recompute":
            logger.warning(
                'kv_load_failure_policy is "%s": a request whose KV cannot be fetched will '
                'fail; write "kv_load_failure_policy": "recompute" in --kv-transfer-config to '
                "have it recomputed on this engine instead",
                transfer.kv_load_failure_policy,
            )

    # ---- both sides --------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> ConnectorStats | None:
        stats = ConnectorStats()
        for side in (self._pulls, self._pushes, self._worker):
            if side is not None:
                stats.aggregate(ConnectorStats(side.counts.take()))
        return None if stats.is_empty() else stats

    @classmethod
    def build_kv_connector_stats(cls, data: Payload | None = None) -> ConnectorStats:
        return ConnectorStats(data)

    @classmethod
    def build_prom_metrics(cls, *arguments: Any, **named: Any) -> ConnectorMetrics | None:
        return metrics_for(*arguments, **named)

    # ---- scheduler side ----------------------------------------------------------------------

    def _scheduler_of(self, request: Any) -> PullScheduler | PushScheduler:
        """Return the scheduler of a request: push mode serves those that name a transfer."""
        is_pushed = "transfer" in (request.kv_transfer_params or {})
        scheduler = self._pushes if is_pushed and self._pushes is not None else self._pulls
        assert scheduler is not None
        return scheduler

    def on_new_request(self, request: Any) -> None:
        self._scheduler_of(request).arrived(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        scheduler = self._scheduler_of(request)
        num_tokens = scheduler.num_new_matched_tokens(request, num_computed_tokens)
        return num_tokens, num_tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        scheduler = self._scheduler_of(request)
        scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> ConnectorMetadata:
        if self._pushes is not None:
            self._pushes.scheduled(scheduler_output)
        return ConnectorMetadata(self._orders.take())

    def update_connector_output(self, connector_output: Any) -> None:
        loaded = set(connector_output.finished_recving or ())
        for scheduler in (self._pulls, self._pushes):
            if scheduler is not None:
                scheduler.loaded(loaded)

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._scheduler_of(request).finished(request, block_ids)

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        return tuple(range(len(self._kv_cache_config.kv_cache_groups)))

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        self.set_xfer_handshake_metadata_pp_aware({(0, rank): metadata[rank] for rank in metadata})

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        # The keys are pipeline and tensor-parallel rank: sorted, the workers are in their order.
        ranks = [metadata[rank].rank for rank in sorted(metadata)]
        for scheduler in (self._pulls, self._pushes):
            if scheduler is not None:
                scheduler.ranks = [rank for rank in ranks if rank is not None]
        if self._pushes is not None:
            stages = {stage: metadata[stage, rank].layers for stage, rank in sorted(metadata)}
            self._pushes.stages = tuple(stages.values())

    # ---- worker side -------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._kv_caches = kv_caches
        self._worker = self._start_worker(None)

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: Any) -> bool:
        return True

    def unregister_kv_caches(self) -> None:
        """Withdraw the KV memory before an engine sleeps, so that no peer reads or writes it."""
        if self._worker is not None and not self._is_asleep:
            self._worker.close()
            self._is_asleep = True

    def restore_kv_caches(self) -> None:
        """Serve the KV memory again, under a new address; vLLM asks the workers for theirs then."""
        if self._is_asleep:
            self._worker = self._start_worker(self._worker)
            self._is_asleep = False

    def _start_worker(self, before: Worker | None) -> Worker:
        transfer = self._vllm_config.kv_transfer_config
        return Worker(
            self._options,
            self._kv_caches,
            self._kv_cache_config,
            self._vllm_config,
            version=str(vllm.__version__),
            is_producer=transfer.is_kv_producer,
            is_consumer=transfer.is_kv_consumer,
            before=before,
        )

    def get_handshake_metadata(self) -> HandshakeMetadata | None:
        if self._worker is None:
            return None
        return HandshakeMetadata(self._worker.address, self._worker.layers)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is None or not self.has_connector_metadata():
            return
        # vLLM's second model runner calls this outside of a forward context, with arguments if
        # there was a forward step; the first one inside, without arguments.
        is_idle = forward_context.attn_metadata is None and not kwargs
        self._worker.carry_out(self._get_connector_metadata().orders, is_idle=is_idle)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: vLLM schedules a request only after its load has ended."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        if self._worker is not None:
            self._worker.layer_saved(layer_name)

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.step_saved()

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return extra_config.get("mode") == "push"  # save_kv_layer must be called

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._worker is None:
            return None, None
        return self._worker.take_ended()

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        results = super().get_transfer_results(finished_req_ids)
        if self._worker is not None:
            results.failed_recving |= self._worker.failed_request_ids
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._worker is None else self._worker.take_failed_blocks()

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
