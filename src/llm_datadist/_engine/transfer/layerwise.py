"""transfer_cache_async: pushes a cache layer by layer, each as soon as it is complete."""

from __future__ import annotations

import logging
import threading
from itertools import repeat
from typing import TYPE_CHECKING

from llm_datadist._control.threads import start
from llm_datadist._control.workers import Workers
from llm_datadist._engine.transfer.layerwise_plans import (
    Destination,
    check_configs,
    make_destination,
    make_source,
)
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import CacheTask
from llm_datadist._types.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.transfer.calls import Transfers
    from llm_datadist._engine.transfer.order import Awaited
    from llm_datadist._tracing import RequestTrace
    from llm_datadist._types import (
        BlockList,
        Cache,
        LayerSynchronizer,
        TransferConfig,
        TransferWithCacheKeyConfig,
    )

logger = logging.getLogger("llm_datadist")

_Sent = tuple[LLMStatusCode, LLMException | None]

OPERATION = "transfer_cache_async"
_PARALLEL_DESTINATIONS = 16


class Layerwise:
    """Runs the layer-wise transfers of one instance. Thread-safe.

    Each transfer has one worker thread, a daemon, because the caller's synchronizer may block for
    ever. Several destinations of one layer are served at the same time.
    """

    def __init__(self, instance: Instance, transfers: Transfers) -> None:
        self._instance = instance
        self._transfers = transfers
        self._lock = threading.Lock()
        self._running: set[TaskState] = set()
        self._senders = Workers("llm_datadist-layers", _PARALLEL_DESTINATIONS - 1)

    def start(
        self,
        src_cache: Cache,
        synchronizer: LayerSynchronizer,
        configs: Sequence[TransferConfig] | Sequence[TransferWithCacheKeyConfig],
        src_blocks: BlockList | None,
        dst_blocks: BlockList | None,
        dst_block_bytes: int | None,
        trace: RequestTrace | None = None,
        after: Awaited | None = None,
    ) -> CacheTask:
        """See CacheManager.transfer_cache_async. Every argument is checked before this returns."""
        instance = self._instance
        by_key = check_configs(OPERATION, configs, keys_allowed=instance.config.remote_accessible)
        source = make_source(
            OPERATION,
            instance.registry.find(OPERATION, src_cache),
            src_blocks,
            dst_blocks,
            dst_block_bytes,
            all_blocks_allowed=by_key,
        )
        source.trace = trace
        name = OPERATION if trace is None else trace.named(OPERATION)
        targets = [make_destination(self._transfers, source, config) for config in configs]
        state = TaskState(len(targets))
        with self._lock:
            self._instance.life.check_open(OPERATION)
            self._running.add(state)
        worker = threading.Thread(
            target=self._work,
            args=(name, state, synchronizer, targets, after),
            name="llm_datadist-layerwise",
            daemon=True,
        )
        try:
            start(worker, OPERATION)
        except BaseException:
            with self._lock:
                self._running.discard(state)
            raise
        return CacheTask(state)

    def close(self) -> None:
        """Complete every task with LLM_ENGINE_FINALIZED, without waiting for running pushes."""
        with self._lock:
            running, self._running = self._running, set()
        for state in running:
            state.ask_to_end()
            for index in range(len(state.results())):
                state.set_result(index, LLMStatusCode.LLM_ENGINE_FINALIZED)
            state.complete()
        self._senders.dismiss()

    def _work(
        self,
        name: str,
        state: TaskState,
        synchronizer: LayerSynchronizer,
        targets: list[Destination],
        after: Awaited | None,
    ) -> None:
        try:
            if after is None or _awaited(name, state, after):
                self._send_layers(name, state, synchronizer, targets)
        except BaseException:  # SystemExit too: it would end this thread without a log line
            logger.exception("%s: the worker failed", name)
            for index in range(len(targets)):
                state.set_result(index, LLMStatusCode.LLM_FAILED)
        finally:
            state.complete()
            with self._lock:
                self._running.discard(state)

    def _send_layers(
        self,
        name: str,
        state: TaskState,
        synchronizer: LayerSynchronizer,
        targets: list[Destination],
    ) -> None:
        failed: set[int] = set()
        for layer in sorted({layer for target in targets for layer in target.layers}):
            wanted = [
                index
                for index, target in enumerate(targets)
                if layer in target.layers and index not in failed
            ]
            if not wanted:
                continue
            if state.is_canceled:
                return
            if not _synchronized(name, synchronizer, layer):
                for index in wanted:
                    state.set_result(index, LLMStatusCode.LLM_FAILED)
                return
            if not state.begin_layer(wanted):
                return
            try:
                sent = self._send(name, targets, wanted, layer)
                for index, (status, error) in zip(wanted, sent, strict=True):
                    last = layer == targets[index].layers[-1]
                    if status is not LLMStatusCode.LLM_SUCCESS:
                        failed.add(index)
                        state.set_result(index, status, error)
                    elif last:
                        state.set_result(index, status)
            finally:
                state.end_layer()

    def _send(
        self, name: str, targets: list[Destination], wanted: list[int], layer: int
    ) -> list[_Sent]:
        """Send one layer to all destinations at the same time, to the first on this thread."""
        first, *others = (targets[index] for index in wanted)
        sending = [self._senders.submit(_send_one, name, target, layer) for target in others]
        last = map(_outcome, sending, repeat(name), others, repeat(layer))
        return [_send_one(name, first, layer), *last]


def _awaited(name: str, state: TaskState, after: Awaited) -> bool:
    """Wait for the work that must have ended before; a failure is each destination's result."""
    try:
        after.wait(OPERATION)
    except LLMException as error:
        logger.error("%s: %s", name, str(error))
        for index in range(len(state.results())):
            state.set_result(index, error.status_code, error)
        return False
    return True


def _synchronized(name: str, synchronizer: LayerSynchronizer, layer: int) -> bool:
    try:
        done = synchronizer.synchronize_layer(layer, None)
    except BaseException:  # SystemExit too: it would end this thread without a log line
        logger.exception("%s: synchronize_layer(%d) raised", name, layer)
        return False
    if not done:
        logger.error("%s: synchronize_layer(%d) returned %r", name, layer, done)
    return bool(done)


def _outcome(sending: Future[_Sent], name: str, target: Destination, layer: int) -> _Sent:
    """Return the result of a sender; send on this thread if it got no thread."""
    try:
        return sending.result()
    except LLMException:
        return _send_one(name, target, layer)


def _send_one(name: str, target: Destination, layer: int) -> _Sent:
    try:
        target.send(layer)
    except LLMException as error:
        if error.status_code is not LLMStatusCode.LLM_ENGINE_FINALIZED:
            logger.error("%s: layer %d: %s", name, layer, str(error))
        return error.status_code, error
    except Exception:  # MemoryError, or a defect: each destination gets a result
        logger.exception("%s: layer %d failed", name, layer)
        return LLMStatusCode.LLM_FAILED, None
    return LLMStatusCode.LLM_SUCCESS, None
