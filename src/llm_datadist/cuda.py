"""Order with the work of NVIDIA GPUs *(extension)*. Imports no package of a GPU.

Source: docs/howto/gpu-streams.md.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, final

from llm_datadist._backends.outcomes import Code, as_outcome
from llm_datadist._devices.cuda import DriverUnavailable, StreamEvent
from llm_datadist._types import LayerSynchronizer
from llm_datadist._types.checks import INT32_MAX, INT64_MAX, UINT32_MAX, check_int
from llm_datadist._types.streams import check_after

if TYPE_CHECKING:
    from llm_datadist._types.streams import After

__all__ = ["EventSynchronizer"]


@final
class EventSynchronizer(LayerSynchronizer):
    """Tells `transfer_cache_async` when a GPU has finished a layer.

    The program calls `record` for each layer, right after it has given the layer's kernels to a
    stream; the transfer's thread waits until the GPU has reached that point. Layers may be recorded
    before or after the transfer begins. One object serves one pass of the model, and any number of
    transfers of it.

    Args:
        num_layers: Layers of the cache.
        timeout_ms: How long a layer may take from when the transfer comes to it; None for no limit.
        device: GPU of a default stream, when the recording thread has no context.

    Raises:
        TypeError, ValueError: A wrong type, or a number out of range.
    """

    def __init__(self, num_layers: int, *, timeout_ms: int | None = None, device: int = 0) -> None:
        self._num_layers = check_int("num_layers", num_layers, 1, INT32_MAX)
        self._timeout_ms = (
            None if timeout_ms is None else check_int("timeout_ms", timeout_ms, 1, UINT32_MAX)
        )
        self._device = check_int("device", device, 0, INT32_MAX)
        self._changed = threading.Condition()
        self._events: dict[int, StreamEvent] = {}
        self._aborted = False

    def record(self, layer_index: int, after: After) -> None:
        """Note that a layer is complete when a stream has done all that it was given so far.

        Args:
            layer_index: Which layer, from 0.
            after: The stream, or an event that was recorded in it: what `after` of a transfer
                takes. A later call for the same layer replaces it for transfers that have not come
                to the layer yet.

        Raises:
            TypeError: after is neither a stream nor an event.
            ValueError: A layer out of range, or an event that was never recorded.
            RuntimeError: This process has no driver of GPUs, or it refuses the handle.
        """
        layer = check_int("layer_index", layer_index, 0, self._num_layers - 1)
        point = check_after(after)
        if point is None:
            raise TypeError("after is None; give the stream that computes the layer")
        try:
            event = StreamEvent(point, self._device)
        except DriverUnavailable as error:
            problem = f"EventSynchronizer.record: {error}; give a live stream or event"
            raise RuntimeError(problem) from error
        with self._changed:
            self._events[layer] = event
            self._changed.notify_all()

    def abort(self) -> None:
        """End every wait: layers that are not complete fail. For a pass that was given up."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Wait until a layer is complete.

        Args:
            layer_index: Which layer.
            timeout_in_millis: How long to wait; None: `timeout_ms` of the object.

        Returns:
            False when the time is over, after `abort`, or after an error of the GPU.
        """
        timeout_ms = self._timeout_ms if timeout_in_millis is None else timeout_in_millis
        deadline_ns = INT64_MAX
        if timeout_ms is not None:
            deadline_ns = time.monotonic_ns() + timeout_ms * 1_000_000
        event = self._recorded(layer_index, deadline_ns)
        while event is not None and not self._aborted:
            now_ns = time.monotonic_ns()
            part_ns = min(deadline_ns, now_ns + _PART_NS)  # to see an abort
            outcome = as_outcome(event.wait(part_ns))
            if outcome.code != Code.TIMEOUT or now_ns >= deadline_ns:
                return outcome.code == Code.OK
        return False

    def _recorded(self, layer: int, deadline_ns: int) -> StreamEvent | None:
        """Return a layer's event as soon as it was recorded; None at the deadline."""
        with self._changed:
            left = None
            if deadline_ns != INT64_MAX:
                left = (deadline_ns - time.monotonic_ns()) / 1e9
            self._changed.wait_for(lambda: self._aborted or layer in self._events, left)
            return self._events.get(layer)


_PART_NS = 50_000_000
