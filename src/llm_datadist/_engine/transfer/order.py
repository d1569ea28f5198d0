"""`after` of a transfer: it begins when work that the caller has given to a GPU has ended."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._backends.outcomes import Code, as_outcome
from llm_datadist._devices import cuda
from llm_datadist._errors import LLMException, LLMStatusCode, fail, finalized, restate
from llm_datadist._types.streams import check_after

if TYPE_CHECKING:
    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._engine.instance import Instance
    from llm_datadist._types.streams import After

__all__ = ["FEWER_CALLS", "NO_GPU_THREAD", "Awaited", "Order"]

NO_GPU_THREAD: Final = "64 threads wait for GPUs already, or no further one can be started"
FEWER_CALLS: Final = "make fewer calls at a time, or raise the limit of threads (ulimit -u)"


@final
class Awaited:
    """A point in the caller's work that one call waits for.

    Args:
        event: The point.
        instance: Whose call it is; its end ends a wait.
    """

    def __init__(self, event: cuda.StreamEvent, instance: Instance) -> None:
        self._event = event
        self._node = instance.node
        self._timeout_ns = instance.config.sync_timeout_ms * 1_000_000
        self._statuses = instance.config.statuses

    def wait(self, operation: str, deadline_ns: int = 0) -> None:
        """Wait for it, until `deadline_ns` or, if that is 0, for sync_kv_timeout.

        Raises:
            LLMException: LLM_TIMEOUT; LLM_ENGINE_FINALIZED; LLM_DEVICE_MEM_ERROR or LLM_FAILED for
                an error of the GPU.
        """
        until_ns = deadline_ns or time.monotonic_ns() + self._timeout_ns
        outcome = as_outcome(self._event.wait(until_ns, self._node.native))
        if outcome.code == Code.OK:
            return
        error = _failure(operation, outcome)
        restate(error, self._statuses)
        raise error


@final
class Order:
    """Makes the points that the calls of one instance wait for. Thread-safe."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._uses_gpus = instance.config.device != "cpu"
        self._device = instance.config.device_ids[0]

    def awaited(self, operation: str, after: After) -> Awaited | None:
        """Return the point that `after` names now; None for None, and a point that it is itself.

        Raises:
            TypeError: It is neither a stream nor an event.
            ValueError: An event that was never recorded.
            LLMException: LLM_FEATURE_NOT_ENABLED: the instance uses no GPU, this process has no
                driver of GPUs, or the driver refuses the handle.
        """
        if isinstance(after, Awaited):  # made on another thread than the one that moves the bytes
            return after
        point = check_after(after)
        if point is None:
            return None
        if not self._uses_gpus:
            raise self._not_enabled(operation, 'llm.Device is "cpu"')
        try:
            event = cuda.StreamEvent(point, self._device)
        except cuda.DriverUnavailable as error:
            raise self._not_enabled(operation, str(error)) from error
        return Awaited(event, self._instance)

    @staticmethod
    def _not_enabled(operation: str, why: str) -> Exception:
        return fail(
            LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            operation,
            f"after names a stream or event of a GPU, but {why}",
            "leave after out for memory of the host",
        )


def _failure(operation: str, outcome: Outcome) -> LLMException:
    """Return the exception for an outcome of a wait that is no success."""
    if outcome.code == Code.TIMEOUT:
        return fail(
            LLMStatusCode.LLM_TIMEOUT,
            operation,
            "the work that after names has not ended in time, so nothing was moved",
            "raise sync_kv_timeout, or call when the work is further",
        )
    if outcome.code == Code.CLOSED:
        return finalized(operation)
    if outcome.sys_errno == errno.EUSERS:
        return fail(LLMStatusCode.LLM_FAILED, operation, NO_GPU_THREAD, FEWER_CALLS)
    is_memory = outcome.code == Code.LOCAL_FAULT
    return fail(
        LLMStatusCode.LLM_DEVICE_MEM_ERROR if is_memory else LLMStatusCode.LLM_FAILED,
        operation,
        "the GPU's driver fails for what after names",
        "give a live stream or event; after an error of the GPU, restart the process",
    )
