"""One link's way through the engine: reads into own slots, writes into slots that the peer grants.

What the lanes do beside it: small transfers as a whole, the checks before and after a read, the
doorbell that has the peer's threads move what has landed there, and everything that the engine
cannot do at the moment. So whatever becomes of the engine, the outcome is the lanes'.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_datadist._backends.base import Channel, Finished
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.bindings import NUM_POSTERS
from llm_datadist._backends.nixl.landing import SLOT_BYTES
from llm_datadist._backends.nixl.pull import Pull
from llm_datadist._backends.nixl.push import Push
from llm_datadist._backends.nixl.remote_memory import PeerMemory
from llm_datadist._backends.outcomes import Code, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.base import Handle
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.nixl.agent import Running
    from llm_datadist._backends.nixl.backend import NixlBackend
    from llm_datadist._backends.nixl.metadata import NixlMetadata
    from llm_datadist._backends.nixl.progress import Work
    from llm_datadist._backends.transfer import PeerEndpoint, Transfer

__all__ = ["FAILED", "NixlChannel"]

FAILED = -1
"""Instead of a Code: the engine has failed, the lanes have to tell why."""

_FIRST_PAUSE_S = 20e-6
_LONGEST_PAUSE_S = 500e-6
_TELLING_BYTES = 1 << 20
"""So much that is done when it has been posted was copied meanwhile, most likely."""
_CONVINCING_CHUNKS = 3


class NixlChannel(Channel):
    """See the module.

    Args:
        backend: Of this instance.
        peer: What the peer told about its end.
        there: What its backend told.
        lanes: The link's.
        why_not: Set when everything has to go over the lanes.
    """

    name = "nixl"
    reaches_devices = True

    def __init__(
        self,
        backend: NixlBackend,
        peer: PeerEndpoint,
        there: NixlMetadata,
        lanes: LinkLanes,
        why_not: str = "",
    ) -> None:
        self.backend = backend
        self.node = backend.node
        self.lanes = lanes
        self.there = there
        self.memory = PeerMemory(self)
        self.over_lanes = 0
        self.moved = 0
        self.is_loaded = False
        self._loading = threading.Lock()
        self._done_at_once = 0
        self._why_not = why_not
        self._last_detour = why_not
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._running = 0
        self._pull, self._push = Pull(self), Push(self)
        self._cluster_id = peer.cluster_id

    def run(self, transfer: Transfer) -> Outcome:
        total_bytes = transfer.total_bytes
        small = total_bytes <= self.backend.small_bytes and not transfer.on_device
        if small or total_bytes == 0:  # of no bytes: it only asks whether the cache is there
            return self._over_lanes(transfer)
        if self._why_not:
            return self._detour(transfer)
        with self._changed:
            if self._closed.is_set():
                return Outcome(Code.CANCELLED)
            self._running += 1
        try:
            outcome: Outcome | str = self._why_not_loaded()
            outcome = outcome or (self._push if transfer.write else self._pull).run(transfer)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
        if isinstance(outcome, Outcome):
            self.moved += outcome.code == Code.OK
            return outcome
        self.over_lanes += not transfer.on_device
        self._last_detour = outcome
        return self._detour(transfer)

    def _why_not_loaded(self) -> str:
        """Let the engine know the peer, if it does not yet; say why that cannot be."""
        if self.is_loaded:
            return ""
        with self._loading:
            return self._load()

    def _load(self) -> str:
        if not self.is_loaded and not self._why_not:
            try:
                self.backend.load(self.there)
                self.is_loaded = True
            except NixlError as error:
                self._why_not = f"NIXL cannot connect: {error}"
        return self._why_not

    def post(self, transfer: Transfer) -> Handle:
        return Finished(self.run(transfer))

    @property
    def trouble(self) -> str:
        return self._last_detour

    def _detour(self, transfer: Transfer) -> Outcome:
        """Go over the lanes; an accelerator's memory they cannot reach, but say if it is gone."""
        if not transfer.on_device:
            return self._over_lanes(transfer)
        none = transfer.length[:0]
        asked = self.lanes.read(
            replace(transfer, write=False, local=none, remote=none, length=none)
        )
        return Outcome(Code.NO_PATH) if asked.code == Code.OK else asked

    def _over_lanes(self, transfer: Transfer) -> Outcome:
        return self.lanes.write(transfer) if transfer.write else self.lanes.read(transfer)

    def settled(self, running: Running, work: Work) -> bool:
        """Wait for a chunk; return whether it has arrived. If it has not, the work has ended."""
        code = self._wait(running, work)
        if code != Code.OK and not work.has_ended():
            work.end("NIXL has failed" if code == FAILED else Outcome(code))
        return not work.has_ended()

    def _wait(self, running: Running, work: Work) -> int:
        """Wait for the engine, no longer than for all of the work; return a Code, or FAILED."""
        transfer, pause_s = work.transfer, _FIRST_PAUSE_S
        while (done := running.poll()) is None:
            left_s = (transfer.deadline_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                return Code.TIMEOUT
            if work.has_ended():
                return Code.CANCELLED
            if (ended := self._ended(transfer)) != Code.OK:
                return ended
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        return Code.OK if done else FAILED

    def share(self, work: Work, take_part: Callable[[Work], None]) -> None:
        """Carry out a transfer, on several threads where it is posting that takes the time."""
        if self.engine_copies and work.transfer.total_bytes > SLOT_BYTES:
            self.backend.posters.run(
                lambda: take_part(work), lambda: work.end(Outcome(Code.CANCELLED))
            )
        else:
            take_part(work)

    @property
    def engine_copies(self) -> bool:
        """Whether the engine lately copied within the calls that post, as UCX does on one host.

        More threads that post then move more bytes.
        """
        return self._done_at_once >= _CONVINCING_CHUNKS

    def was_posted(self, running: Running, total_bytes: int) -> None:
        """Learn from a chunk whether the engine copies while it is posted."""
        if total_bytes >= _TELLING_BYTES:
            self._done_at_once = self._done_at_once + 1 if running.done else 0

    def _ended(self, transfer: Transfer) -> int:
        """Whether something else than the engine has ended a transfer."""
        if self.node.guard(0) % 2 == 0:
            return Code.CLOSED
        index, value = transfer.local_ref
        if index and self.node.guard(index) != value:
            return Code.LOCAL_GONE
        if self._closed.is_set():
            return Code.CANCELLED
        if self.lanes.count == 0:
            return FAILED
        return Code.OK

    def forget(self, address: int, size: int) -> None:
        self.memory.forget(address, size)

    def describe(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "engine": self.backend.engine,
            "wheel": self.backend.distribution,
            "reads": "NIXL READ into own landing slots",
            "pushes": "NIXL WRITE into the peer's landing slots, moved on by its own threads",
            "small_transfers": f"lanes, up to {self.backend.small_bytes} bytes",
            "posting_threads": NUM_POSTERS if self.engine_copies else 1,
            "transfers": self.moved,
            "over_lanes": self.over_lanes,
        }
        if self._last_detour:
            facts["why_over_lanes"] = self._last_detour
        return facts

    @property
    def is_quiet(self) -> bool:
        """Whether the engine has nothing of this link's under way any more."""
        return self.memory.is_quiet and self._push.is_quiet

    def close(self) -> None:
        self._closed.set()
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)
        self.memory.close()
        self.backend.unlinked(self)
