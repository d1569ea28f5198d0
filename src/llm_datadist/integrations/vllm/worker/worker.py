"""One worker of an engine: carries out the scheduler's orders and reports ended transfers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.kv_layout import kv_layout_of
from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
from llm_datadist.integrations.vllm.rank_layouts import rank_layouts_of
from llm_datadist.integrations.vllm.worker.compatibility import facts_of
from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
from llm_datadist.integrations.vllm.worker.pull_consumer import PullConsumer
from llm_datadist.integrations.vllm.worker.pull_producer import PullProducer
from llm_datadist.integrations.vllm.worker.push_consumer import PushConsumer
from llm_datadist.integrations.vllm.worker.push_producer import PushProducer
from llm_datadist.integrations.vllm.worker.reports import Reports

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.options import ConnectorOptions
    from llm_datadist.integrations.vllm.step_orders import StepOrders
    from llm_datadist.integrations.vllm.transfer_counts import TransferCounts

_PUSHABLE = {"FullAttentionSpec", "MLAAttentionSpec"}
"""KV cache groups that push mode supports, alone: their blocks stay as long as the request."""


def check_parallel(parallel_config: Any) -> None:
    """Check that workers differ in the KV heads and layers that they hold, and in nothing else.

    Raises:
        ValueError: A kind of parallelism that is not supported; the text names it.
    """
    for option in ("prefill_context_parallel_size", "decode_context_parallel_size"):
        size = getattr(parallel_config, option, 1)
        if size > 1:
            raise ValueError(
                f"LLMDataDistConnector does not support {option} {size}; use 1 (tensor, pipeline "
                "and data parallelism are supported)"
            )


class Worker:
    """One worker. The model's thread calls it; no call but `close` waits for a transfer.

    Args:
        options: The connector's options.
        kv_caches: Layer name -> KV tensor.
        kv_cache_config: vLLM's KVCacheConfig.
        vllm_config: vLLM's configuration.
        version: vLLM's version.
        is_producer: Whether this engine prefills for others.
        is_consumer: Whether other engines prefill for this one.
        before: The closed worker whose place this one takes; what it has left to report is reported
            by this one.

    Raises:
        ValueError: KV memory that cannot be moved block by block, or not in this mode.
        LLMException: The listen address cannot be bound.
    """

    def __init__(
        self,
        options: ConnectorOptions,
        kv_caches: dict[str, Any],
        kv_cache_config: Any,
        vllm_config: Any,
        *,
        version: str,
        is_producer: bool,
        is_consumer: bool,
        before: Worker | None = None,
    ) -> None:
        rank = int(vllm_config.parallel_config.rank)
        layout = kv_layout_of(kv_caches, kv_cache_config, rank)
        pushes = options.mode == "push"
        if pushes:
            _check_pushable(layout.groups)
        rank_layouts = rank_layouts_of(layout, kv_caches, kv_cache_config, vllm_config)
        facts = facts_of(vllm_config, layout, rank_layouts, options.model_id, version)
        self._fails_whole = len(layout.block_sizes) > 1 or layout.has_states
        self._instance = WorkerInstance(options, layout, rank_layouts, facts, listens=is_producer)
        self._reports: Reports = Reports() if before is None else before._reports
        parts = self._instance, self._reports
        self._pull_producer = PullProducer(*parts) if is_producer else None
        self._pull_consumer = PullConsumer(*parts) if is_consumer else None
        self._push_producer = PushProducer(*parts) if pushes and is_producer else None
        self._push_consumer = PushConsumer(*parts) if pushes and is_consumer else None
        self._is_idle = False
        self._failed_blocks: set[int] = set()
        self.failed_request_ids: set[str] = set()

    @property
    def address(self) -> RankAddress | None:
        """Address on which this worker listens, or None if it does not."""
        listen = self._instance.listen_address
        stage = self._instance.rank_layouts.stage.rank
        if listen is None:
            return None
        return RankAddress(*listen, self._instance.cluster_id, stage, self.layers)

    @property
    def layers(self) -> tuple[int, int] | None:
        """First of the layers that this worker holds, and the one after the last, if known."""
        return self._instance.rank_layouts.stage.span

    @property
    def counts(self) -> TransferCounts:
        """What the transfers of this worker have come to."""
        return self._reports.counts

    def carry_out(self, orders: StepOrders, *, is_idle: bool) -> None:
        """Start what the scheduler side has ordered for this step.

        Args:
            orders: The orders.
            is_idle: Whether there is no model step.
        """
        self._is_idle = is_idle
        if self._pull_producer is not None:
            for request_id, key in orders.publish.items():
                self._pull_producer.publish(request_id, key)
            for request_id in orders.hold:
                self._pull_producer.hold(request_id)
            for request_id in orders.withdraw:
                self._pull_producer.withdraw(request_id)
        if self._pull_consumer is not None:
            for load in orders.loads:
                self._pull_consumer.load(load)
            for offer in orders.dismiss:
                self._pull_consumer.dismiss(offer)
            for request_id in orders.abandon:
                self._pull_consumer.abandon(request_id)
        self._carry_out_pushes(orders)

    def layer_saved(self, layer: str) -> None:
        """Push a layer of the step, which the model has computed."""
        if self._push_producer is not None:
            self._push_producer.layer_saved(layer)

    def step_saved(self) -> None:
        """Push all layers of the step, which the model has computed."""
        if self._push_producer is not None:
            self._push_producer.end_step()

    def take_ended(self) -> tuple[set[str], set[str]]:
        """Return requests whose blocks have been sent, and requests whose loads have ended.

        Afterwards, `failed_request_ids` and `take_failed_blocks` say what the latter lack. In a
        step without the model this waits a moment for a change, so that vLLM's loop does not spin
        while only transfers are pending.
        """
        ended = self._reports.take()
        if self._is_idle and not ended.sent and not ended.loaded and self._is_waiting():
            self._reports.wait_while_quiet()
            ended = self._reports.take()
        # With one KV cache group, vLLM takes block numbers and keeps the blocks before the first of
        # them; with several it takes requests, and recomputes their whole prompts. So it must with
        # states: there is none for the blocks that would be kept.
        if self._fails_whole:
            self.failed_request_ids = ended.failed
        else:
            self._failed_blocks |= ended.failed_blocks
        return ended.sent, ended.loaded

    def take_failed_blocks(self) -> set[int]:
        """Return the local blocks that the loads of the last `take_ended` lack."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def close(self) -> None:
        """End links and threads, and report all that vLLM waits for; idempotent."""
        if self._pull_producer is not None:
            self._pull_producer.close()
        self._instance.close()
        for side in (self._pull_consumer, self._push_producer, self._push_consumer):
            if side is not None:
                side.close()

    def _carry_out_pushes(self, orders: StepOrders) -> None:
        if self._push_producer is not None:
            for send in orders.send:
                self._push_producer.send(send)
            for request_id, problem in orders.give_up.items():
                self._push_producer.give_up(request_id, problem)
            self._push_producer.begin_step(orders.progress)
            for request_id in orders.finish:
                self._push_producer.finish(request_id)
        if self._push_consumer is not None:
            for order in orders.receive:
                self._push_consumer.receive(order)
            for request_id in orders.abandon:
                self._push_consumer.abandon(request_id)

    def _is_waiting(self) -> bool:
        pulling = self._pull_producer, self._pull_consumer
        pushing = self._push_producer, self._push_consumer
        return any(side is not None and side.is_waiting for side in (*pulling, *pushing))


def _check_pushable(groups: str) -> None:
    if groups not in _PUSHABLE:
        raise ValueError(
            f'kv_connector_extra_config: "mode" is "push", but the KV cache of this model has the '
            f"groups {groups}; blocks of a sliding window may be gone, and states replaced, before "
            'they are sent: write "mode": "pull"'
        )
