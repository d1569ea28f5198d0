"""Moves transfers chunk by chunk through landing slots: the slot loop of pulls and pushes.

The engine moves some chunks while this process's threads copy others. Where the engine copies
within the call that posts, several threads post instead, each one chunk at a time.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, final

from llm_datadist._backends.cancellation import check_canceled
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.chunks import Chunk, chunks
from llm_datadist._backends.nixl.landing import SLOT_BYTES, Slot
from llm_datadist._backends.nixl.progress import Progress
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._control.backoff import Backoff

if TYPE_CHECKING:
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.nixl.agent import TransferRequest
    from llm_datadist._backends.nixl.posting_threads import PostingThreads
    from llm_datadist._backends.transfer import Transfer

_SLOT_WAIT_S: Final = 0.05
_FIRST_PAUSE_S: Final = 20e-6
_LONGEST_PAUSE_S: Final = 500e-6
_OBSERVED_BYTES: Final = 1 << 20
"""A chunk of this size that is done as soon as it is posted was most likely copied meanwhile."""
_OBSERVED_CHUNKS: Final = 3
_ENGINE_FAILED: Final = "NIXL has failed"


class Direction(ABC):
    """How a pull, or a push, moves one chunk."""

    max_in_flight: ClassVar[int]
    """Chunks that one thread has in flight at most."""

    @abstractmethod
    def take_slots(self, wait_s: float) -> tuple[Slot, ...]:
        """Take the slots that one chunk needs; none when one is missing after that time."""

    @abstractmethod
    def start(
        self, transfer: Transfer, chunk: Chunk, slots: tuple[Slot, ...]
    ) -> TransferRequest | Outcome | str:
        """Post a chunk; return why not, as an outcome, or as a text if the lanes may do it.

        Raises:
            NixlError: The engine refuses; parts of the chunk may be on their way.
        """

    @abstractmethod
    def finish(self, transfer: Transfer, chunk: Chunk, slots: tuple[Slot, ...]) -> Outcome:
        """Put a chunk that the engine has moved in its place, and give its slots back."""


class _InFlight(NamedTuple):
    """A chunk that the engine moves."""

    chunk: Chunk
    slots: tuple[Slot, ...]
    request: TransferRequest


@final
class Pipeline:
    """See the module. Thread-safe.

    Args:
        lanes: The link's; without any left, what the engine does is not waited for.
        posting_threads: Run transfers where posting is what takes the time.
    """

    def __init__(self, lanes: LinkLanes, posting_threads: PostingThreads) -> None:
        self._lanes = lanes
        self._node = lanes.node
        self._posting_threads = posting_threads
        self._num_done_at_once = 0
        self._stopped = threading.Event()

    @property
    def engine_copies(self) -> bool:
        """Whether the engine lately copied within the calls that post, as UCX does on one host.

        More threads that post then move more bytes.
        """
        return self._num_done_at_once >= _OBSERVED_CHUNKS

    def stop(self) -> None:
        """End running transfers with CANCELLED. Never blocks."""
        self._stopped.set()

    def run(self, transfer: Transfer, direction: Direction) -> Outcome | str:
        """Move all of a transfer; a text says why the lanes must do it instead."""
        cut = chunks(transfer.local, transfer.remote, transfer.length, SLOT_BYTES)
        progress = Progress(transfer, cut)
        if self.engine_copies and transfer.total_bytes > SLOT_BYTES:
            self._posting_threads.run(
                lambda: self._move(progress, direction),
                lambda: progress.abort(Outcome(Code.CANCELLED)),
            )
        else:
            self._move(progress, direction)
        return progress.result()

    def _move(self, progress: Progress, direction: Direction) -> None:
        """Move chunks until none is left, on the calling thread."""
        in_flight: deque[_InFlight] = deque()
        try:
            while True:
                self._fill(in_flight, progress, direction)
                if not in_flight or progress.is_aborted:
                    return
                if not self._has_arrived(in_flight[0].request, progress):
                    return
                chunk, slots, _ = in_flight.popleft()
                progress.add(direction.finish(progress.transfer, chunk, slots))
        finally:
            for _, slots, request in in_flight:
                for slot in slots:
                    slot.release_when_done(request)

    def _fill(self, in_flight: deque[_InFlight], progress: Progress, direction: Direction) -> None:
        """Post chunks while there are some, and slots for them."""
        while len(in_flight) < (1 if self.engine_copies else direction.max_in_flight):
            wait_s = 0.0 if in_flight else _left_s(progress.transfer, _SLOT_WAIT_S)
            slots = direction.take_slots(wait_s)
            if not slots:
                if not in_flight:
                    progress.no_slot()
                return
            chunk = progress.next_chunk()
            if chunk is None:
                _release(slots)
                return
            request = _start(chunk, slots, progress, direction)
            if request is None:
                return
            if chunk.total_bytes >= _OBSERVED_BYTES:
                self._num_done_at_once = self._num_done_at_once + 1 if request.done else 0
            in_flight.append(_InFlight(chunk, slots, request))

    def _has_arrived(self, request: TransferRequest, progress: Progress) -> bool:
        """Wait for a chunk; if it does not arrive, abort."""
        reason = self._wait(request, progress)
        if reason and not progress.is_aborted:
            progress.abort(reason)
        return not progress.is_aborted

    def _wait(self, request: TransferRequest, progress: Progress) -> Outcome | str:
        """Wait for the engine while the transfer may go on; return why it failed, or ""."""
        pauses = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, 1.5)
        while (done := request.poll()) is None:
            left_s = _left_s(progress.transfer)
            if left_s <= 0:
                return Outcome(Code.TIMEOUT)
            if progress.is_aborted:
                return Outcome(Code.CANCELLED)
            if ended := self._why_ended(progress.transfer):
                return ended
            check_canceled()
            time.sleep(min(pauses.next(), left_s))
        return "" if done else _ENGINE_FAILED

    def _why_ended(self, transfer: Transfer) -> Outcome | str:
        """Return why a transfer must end although the engine is still at it, or ""."""
        if self._node.guard(0) % 2 == 0:
            return Outcome(Code.CLOSED)
        index, value = transfer.local_ref
        if index and self._node.guard(index) != value:
            return Outcome(Code.LOCAL_GONE)
        if self._stopped.is_set():
            return Outcome(Code.CANCELLED)
        return "" if self._lanes.count else _ENGINE_FAILED


def _start(
    chunk: Chunk, slots: tuple[Slot, ...], progress: Progress, direction: Direction
) -> TransferRequest | None:
    """Post a chunk; if that fails, abort and give its slots back."""
    try:
        request = direction.start(progress.transfer, chunk, slots)
    except BaseException as error:
        for slot in slots:
            slot.quarantine()
        if not isinstance(error, NixlError):
            raise
        progress.abort(str(error))
        return None
    if isinstance(request, (Outcome, str)):
        _release(slots)
        progress.abort(request)
        return None
    return request


def _release(slots: tuple[Slot, ...]) -> None:
    for slot in slots:
        slot.release()


def _left_s(transfer: Transfer, most_s: float = float("inf")) -> float:
    return min(max((transfer.deadline_ns - time.monotonic_ns()) / 1e9, 0.0), most_s)
