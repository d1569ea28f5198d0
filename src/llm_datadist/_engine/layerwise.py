"""transfer_cache_async: pushes a cache layer by layer, each as soon as it is complete."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from llm_datadist._engine.layer_plans import Destination, destinations
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import CacheTask
from llm_datadist._types.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._engine.engine import Engine
    from llm_datadist._types import (
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
    """The layer-wise transfers of one instance. Thread-safe.

    Each transfer has one worker thread, a daemon, because the caller's synchronizer may block for
    ever. Several destinations of one layer are served at the same time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._running: set[TaskState] = set()
        self._senders: ThreadPoolExecutor | None = None

    def start(
        self,
        src_cache: Cache,
        synchronizer: LayerSynchronizer,
        configs: Sequence[TransferConfig] | Sequence[TransferWithCacheKeyConfig],
        src_blocks: Sequence[int] | None,
        dst_blocks: Sequence[int] | None,
        dst_block_bytes: int | None,
    ) -> CacheTask:
        """See CacheManager.transfer_cache_async. Every argument is checked before this returns."""
        targets = destinations(
            self._engine, OPERATION, src_cache, configs, src_blocks, dst_blocks, dst_block_bytes
        )
        state = TaskState(len(targets))
        with self._lock:
            self._engine.check_open(OPERATION)
            self._running.add(state)
            if len(targets) > 1 and self._senders is None:
                self._senders = ThreadPoolExecutor(_PARALLEL_DESTINATIONS, "llm_datadist-layers")
        worker = threading.Thread(
            target=self._work,
            args=(state, synchronizer, targets),
            name="llm_datadist-layerwise",
            daemon=True,
        )
        worker.start()
        return CacheTask(state)

    def close(self) -> None:
        """Complete every task with LLM_ENGINE_FINALIZED; running pushes end by themselves."""
        with self._lock:
            running, self._running = self._running, set()
            senders, self._senders = self._senders, None
        for state in running:
            state.ask_to_end()
            for index in range(len(state.results())):
                state.set_result(index, LLMStatusCode.LLM_ENGINE_FINALIZED)
            state.complete()
        if senders is not None:
            senders.shutdown(wait=False, cancel_futures=True)

    def _work(
        self, state: TaskState, synchronizer: LayerSynchronizer, targets: list[Destination]
    ) -> None:
        try:
            self._send_layers(state, synchronizer, targets)
        except BaseException:  # SystemExit too: it would end this thread without a word
            logger.exception("%s: the worker failed", OPERATION)
            for index in range(len(targets)):
                state.set_result(index, LLMStatusCode.LLM_FAILED)
        finally:
            state.complete()
            with self._lock:
                self._running.discard(state)

    def _send_layers(
        self, state: TaskState, synchronizer: LayerSynchronizer, targets: list[Destination]
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
            if state.is_cancelled:
                return
            if not _synchronized(synchronizer, layer):
                for index in wanted:
                    state.set_result(index, LLMStatusCode.LLM_FAILED)
                return
            if not state.begin_layer(wanted):
                return
            try:
                sent = self._send(targets, wanted, layer)
                for index, (status, error) in zip(wanted, sent, strict=True):
                    last = layer == targets[index].layers[-1]
                    if status is not LLMStatusCode.LLM_SUCCESS:
                        failed.add(index)
                        state.set_result(index, status, error)
                    elif last:
                        state.set_result(index, status)
            finally:
                state.end_layer()

    def _send(self, targets: list[Destination], wanted: list[int], layer: int) -> list[_Sent]:
        senders = self._senders
        if len(wanted) == 1 or senders is None:
            return [_send_one(targets[index], layer) for index in wanted]
        try:
            return list(senders.map(lambda index: _send_one(targets[index], layer), wanted))
        except RuntimeError:  # shut down by finalize meanwhile
            return [(LLMStatusCode.LLM_ENGINE_FINALIZED, None)] * len(wanted)


def _synchronized(synchronizer: LayerSynchronizer, layer: int) -> bool:
    try:
        done = synchronizer.synchronize_layer(layer, None)
    except BaseException:  # SystemExit too: it would end this thread without a word
        logger.exception("%s: synchronize_layer(%d) raised", OPERATION, layer)
        return False
    if not done:
        logger.error("%s: synchronize_layer(%d) returned %r", OPERATION, layer, done)
    return bool(done)


def _send_one(target: Destination, layer: int) -> _Sent:
    try:
        target.send(layer)
    except LLMException as error:
        if error.status_code is not LLMStatusCode.LLM_ENGINE_FINALIZED:
            logger.error("%s: layer %d: %s", OPERATION, layer, str(error))
        return error.status_code, error
    except Exception:
        logger.exception("%s: layer %d failed", OPERATION, layer)
        return LLMStatusCode.LLM_FAILED, None
    return LLMStatusCode.LLM_SUCCESS, None
