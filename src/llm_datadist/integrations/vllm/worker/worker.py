"""The workers' side of the connector: carries out orders, and says what has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.kv_layout import kv_layout_of
from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
from llm_datadist.integrations.vllm.worker.compatibility import facts_of
from llm_datadist.integrations.vllm.worker.instance import WorkerInstance
from llm_datadist.integrations.vllm.worker.pull_consumer import PullConsumer
from llm_datadist.integrations.vllm.worker.pull_producer import PullProducer
from llm_datadist.integrations.vllm.worker.push_consumer import PushConsumer
from llm_datadist.integrations.vllm.worker.push_producer import PushProducer
from llm_datadist.integrations.vllm.worker.wakeup import Changes

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.options import ConnectorOptions
    from llm_datadist.integrations.vllm.step_orders import StepOrders

__all__ = ["Worker", "check_parallel"]

_PUSHABLE = {"FullAttentionSpec", "MLAAttentionSpec"}
"""The only KV cache group of a model for push mode: its blocks stay as long as the request."""


def check_parallel(parallel_config: Any) -> None:
    """Refuse kinds of parallelism in which a rank's blocks are not its peer rank's.

    Raises:
        ValueError: There is one; the text names it.
    """
    for option in (
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "decode_context_parallel_size",
    ):
        size = getattr(parallel_config, option, 1)
        if size > 1:
            raise ValueError(
                f"LLMDataDistConnector does not support {option} {size}; use 1 (tensor and data "
                "parallelism are supported)"
            )


class Worker:
    """One worker. Its calls are the model thread's; none of them waits for a transfer.

    Args:
        options: The connector's options.
        kv_caches: Layer name -> KV tensor.
        kv_cache_config: vLLM's KVCacheConfig.
        vllm_config: vLLM's configuration.
        version: vLLM's version.
        is_producer: Whether prompts may be kept for others.
        is_consumer: Whether prompts may be fetched.

    Raises:
        ValueError: KV memory that cannot be moved block by block, or not in this mode.
        LLMException: The listen address cannot be had.
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
    ) -> None:
        rank = int(vllm_config.parallel_config.rank)
        layout = kv_layout_of(kv_caches, kv_cache_config, rank)
        pushes = options.mode == "push"
        if pushes:
            _check_pushable(layout.groups)
        facts = facts_of(vllm_config, layout, options.model_id, version)
        self._has_groups = len(layout.block_sizes) > 1
        self._instance = WorkerInstance(options, layout, facts, listens=is_producer)
        self._changes = Changes()
        parts = self._instance, self._changes
        self._producer = PullProducer(*parts) if is_producer else None
        self._consumer = PullConsumer(*parts) if is_consumer else None
        self._pusher = PushProducer(*parts) if pushes and is_producer else None
        self._receiver = PushConsumer(*parts) if pushes and is_consumer else None
        self._is_idle = False
        self._failed_blocks: set[int] = set()
        self.failed_request_ids: set[str] = set()

    @property
    def address(self) -> RankAddress | None:
        """Where this worker listens."""
        listen = self._instance.listen_address
        return None if listen is None else RankAddress(*listen, self._instance.cluster_id)

    def carry_out(self, orders: StepOrders, *, is_idle: bool) -> None:
        """Begin what the scheduler's side has ordered for this step.

        Args:
            orders: The orders.
            is_idle: Whether there is no model step.
        """
        self._is_idle = is_idle
        if self._producer is not None:
            for request_id, key in orders.publish.items():
                self._producer.publish(request_id, key)
            for request_id in orders.hold:
                self._producer.hold(request_id)
            for request_id in orders.withdraw:
                self._producer.withdraw(request_id)
        if self._consumer is not None:
            for load in orders.loads:
                self._consumer.load(load)
            for offer in orders.dismiss:
                self._consumer.dismiss(offer)
            for request_id in orders.abandon:
                self._consumer.abandon(request_id)
        self._carry_out_pushes(orders)

    def layer_saved(self, layer: str) -> None:
        """The model has computed a layer of the step."""
        if self._pusher is not None:
            self._pusher.layer_saved(layer)

    def step_saved(self) -> None:
        """The model has computed all layers of the step."""
        if self._pusher is not None:
            self._pusher.end_step()

    def take_ended(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks have been sent, and requests whose loads have ended.

        What is known to be missing of the latter is in `failed_request_ids` and
        `take_failed_blocks` afterwards. In a step without the model it waits a moment for a
        change, so that vLLM's loop does not spin while there is nothing but transfers to do.
        """
        sent, loaded = self._take()
        if self._is_idle and not sent and not loaded and self._is_waiting():
            self._changes.wait_while_quiet()
            sent, loaded = self._take()
        return sent, loaded

    def take_failed_blocks(self) -> set[int]:
        """Own blocks that the loads of the last `take_ended` have not filled."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def close(self) -> None:
        """End links and threads; idempotent."""
        if self._producer is not None:
            self._producer.close()
        self._instance.close()
        for side in (self._consumer, self._pusher, self._receiver):
            if side is not None:
                side.close()

    def _carry_out_pushes(self, orders: StepOrders) -> None:
        if self._pusher is not None:
            for send in orders.send:
                self._pusher.send(send)
            for request_id, problem in orders.give_up.items():
                self._pusher.give_up(request_id, problem)
            self._pusher.begin_step(orders.progress)
            for request_id in orders.finish:
                self._pusher.finish(request_id)
        if self._receiver is not None:
            for order in orders.receive:
                self._receiver.receive(order)
            for request_id in orders.abandon:
                self._receiver.abandon(request_id)

    def _is_waiting(self) -> bool:
        sides = (self._producer, self._consumer, self._pusher, self._receiver)
        return any(side is not None and side.is_waiting for side in sides)

    def _take(self) -> tuple[set[str], set[str]]:
        sent: set[str] = set()
        for giver in (self._producer, self._pusher):
            if giver is not None:
                sent |= giver.take_sent()
        ended: set[str] = set()
        failed_requests: set[str] = set()
        for taker in (self._consumer, self._receiver):
            if taker is not None:
                loaded = taker.take_loaded()
                ended |= loaded.request_ids
                failed_requests |= loaded.failed_request_ids
                if not self._has_groups:
                    self._failed_blocks |= loaded.failed_blocks
        # Where block numbers are of one group only, vLLM takes them and keeps the blocks before
        # the first; otherwise it takes requests, and computes the whole prompt.
        if self._has_groups:
            self.failed_request_ids = failed_requests
        return sent, ended


def _check_pushable(groups: str) -> None:
    if groups not in _PUSHABLE:
        raise ValueError(
            f'kv_connector_extra_config: "mode" is "push", but the KV cache of this model has the '
            f"groups {groups}; blocks of a sliding window may be gone before they are sent: "
            'write "mode": "pull"'
        )
