"""Outcome of a transfer that runs in the background.

The engine holds the `TaskState`, fills it in and completes it; the caller holds the `CacheTask` and
waits.

Source: api.md 6.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, final

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types.checks import UINT64_MAX, check_int
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CacheTask", "TaskState"]


class TaskState:
    """State of a background transfer. Thread-safe.

    Args:
        num_configs: Number of its destinations.
    """

    def __init__(self, num_configs: int) -> None:
        self._changed = threading.Condition()
        self._results: list[LLMStatusCode | None] = [None] * num_configs
        self._errors: list[LLMException | None] = [None] * num_configs
        self._complete = False
        self._canceled = False
        self._sending = False
        self._started: set[int] = set()

    def set_result(
        self, index: int, status: LLMStatusCode, error: LLMException | None = None
    ) -> None:
        """Set the outcome of one destination, and the exception behind a failure.

        A failure stays, and nothing changes after `complete`.
        """
        with self._changed:
            if not self._complete and self._results[index] in {None, LLMStatusCode.LLM_SUCCESS}:
                self._results[index] = status
                self._errors[index] = error

    def complete(self) -> None:
        """Mark the transfer as complete. Idempotent.

        Destinations without an outcome stay None.
        """
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def begin_layer(self, indices: Iterable[int]) -> bool:
        """Begin sending a layer to these destinations; return False after `ask_to_end`."""
        with self._changed:
            if self._canceled:
                return False
            self._sending = True
            self._started.update(indices)
            return True

    def end_layer(self) -> None:
        """End the layer: no byte of it moves any more."""
        with self._changed:
            self._sending = False
            self._changed.notify_all()

    def ask_to_end(self) -> None:
        """Ask for an early end: no further layer is begun. Idempotent, does not wait."""
        with self._changed:
            self._canceled = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """End early; when it returns no byte moves any more. Idempotent.

        Destinations that have had a layer, and not all of them, get LLM_FAILED. Waits for the layer
        that is under way, which ends by its deadline, and not for the caller's synchronizer.
        """
        with self._changed:
            self._canceled = True
            self._changed.wait_for(lambda: not self._sending)
            if not self._complete:
                for index in self._started:
                    if self._results[index] is None:
                        self._results[index] = LLMStatusCode.LLM_FAILED
                self._complete = True
                self._changed.notify_all()

    @property
    def is_canceled(self) -> bool:
        """Whether an early end was requested."""
        return self._canceled

    @property
    def is_complete(self) -> bool:
        """Whether the transfer is complete."""
        return self._complete

    def results(self) -> list[LLMStatusCode | None]:
        """Return the outcomes so far."""
        with self._changed:
            return list(self._results)

    def errors(self) -> list[LLMException | None]:
        """Return the exceptions behind failures so far."""
        with self._changed:
            return list(self._errors)

    def wait(self, timeout_ms: int | None) -> bool:
        """Wait until complete; return False when the time is over before."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        with self._changed:
            while not self._complete:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            return True


@names_calls
@final
class CacheTask:
    """A transfer that `transfer_cache_async` has started; made by it only.

    Source: api.md 6. Every method may be called again and again, from any thread; the GIL is
    released while waiting.
    """

    __slots__ = ("_state",)

    def __init__(self, state: TaskState) -> None:
        self._state = state

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        """Wait for the end; never raises for a failed transfer.

        Args:
            timeout_in_millis: How long to wait; 0 only looks, None waits without limit.

        Returns:
            LLM_SUCCESS when every destination has all of its layers, else the first failure in the
            order of the configs (LLM_FAILED when some were never started and none failed), or
            LLM_WAIT_PROCESS_TIMEOUT when the wait expired; a later call may succeed.
        Raises:
            TypeError: timeout_in_millis is not an integer.
            ValueError: It is negative.
        """
        if not self._state.wait(_timeout(timeout_in_millis)):
            return LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT
        results = self._state.results()
        for status in results:
            if status not in {None, LLMStatusCode.LLM_SUCCESS}:
                assert status is not None
                return status
        return LLMStatusCode.LLM_FAILED if None in results else LLMStatusCode.LLM_SUCCESS

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        """Wait for the end and return the outcome of each config, in their order.

        Args:
            timeout_in_millis: How long to wait; 0 only looks, None waits without limit.

        Returns:
            One status per config, None where nothing of it was started; LLM_WAIT_PROCESS_TIMEOUT in
            every place when the wait expired.
        Raises:
            TypeError: timeout_in_millis is not an integer.
            ValueError: It is negative.
        """
        complete = self._state.wait(_timeout(timeout_in_millis))
        results = self._state.results()
        if complete:
            return results
        return [LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT] * len(results)

    @property
    def errors(self) -> list[LLMException | None]:
        """What stopped each config, in their order, as far as is known now *(extension)*.

        None where nothing has failed, or where there is no more to say than the status (a
        synchronizer that refused, a cancel). `LLMException.faults` names blocks that are lost.
        """
        return self._state.errors()

    def cancel(self) -> None:
        """End the transfer early *(extension)*; when it returns no byte of it moves any more.

        Layers that were sent stay where they are. A layer under way is waited for, which takes
        sync_kv_timeout at most; the synchronizer is not, it may go on blocking. The task is
        complete then: LLM_FAILED for each destination that has had some of its layers, None for
        those that have had none. Without effect on a task that is complete; idempotent, from any
        thread.
        """
        self._state.cancel()

    def __repr__(self) -> str:
        complete = self._state.is_complete
        return f"CacheTask(is_complete={complete}, results={self._state.results()})"


def _timeout(timeout_in_millis: int | None) -> int | None:
    if timeout_in_millis is None:
        return None
    return check_int("timeout_in_millis", timeout_in_millis, 0, UINT64_MAX)
