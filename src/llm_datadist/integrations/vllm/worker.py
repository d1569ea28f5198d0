"""The workers' side of the connector: carries out orders, and says what has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_datadist.integrations.vllm.changes import Changes
from llm_datadist.integrations.vllm.consumer import Consumer
from llm_datadist.integrations.vllm.facts import facts_of
from llm_datadist.integrations.vllm.layout import layout_of
from llm_datadist.integrations.vllm.params import RankAddress
from llm_datadist.integrations.vllm.producer import Producer
from llm_datadist.integrations.vllm.worker_instance import WorkerInstance

if TYPE_CHECKING:
    from llm_datadist.integrations.vllm.options import ConnectorOptions
    from llm_datadist.integrations.vllm.orders import Orders

__all__ = ["Worker", "check_parallel"]


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
        ValueError: KV memory that cannot be moved block by block.
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
        layout = layout_of(kv_caches, kv_cache_config, rank)
        facts = facts_of(vllm_config, layout, options.model_id, version)
        self._has_groups = len(layout.block_sizes) > 1
        self._instance = WorkerInstance(options, layout, facts, listens=is_producer)
        self._changes = Changes()
        self._producer = Producer(self._instance, self._changes) if is_producer else None
        self._consumer = Consumer(self._instance, self._changes) if is_consumer else None
        self._is_idle = False
        self._failed_blocks: set[int] = set()
        self.failed_request_ids: set[str] = set()

    @property
    def address(self) -> RankAddress | None:
        """Where this worker listens."""
        listen = self._instance.listen_address
        return None if listen is None else RankAddress(*listen, self._instance.cluster_id)

    def carry_out(self, orders: Orders, *, is_idle: bool) -> None:
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
        if self._consumer is not None:
            self._consumer.close()

    def _is_waiting(self) -> bool:
        return (self._producer is not None and self._producer.is_waiting) or (
            self._consumer is not None and self._consumer.is_waiting
        )

    def _take(self) -> tuple[set[str], set[str]]:
        sent = self._producer.take_sent() if self._producer is not None else set()
        if self._consumer is None:
            return sent, set()
        loaded = self._consumer.take_loaded()
        # Where block numbers are of one group only, vLLM takes them and keeps the blocks before
        # the first; otherwise it takes requests, and computes the whole prompt.
        if self._has_groups:
            self.failed_request_ids = loaded.failed_request_ids
        else:
            self._failed_blocks |= loaded.failed_blocks
        return sent, loaded.request_ids
