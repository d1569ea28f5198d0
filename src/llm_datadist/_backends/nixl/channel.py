"""The NIXL data path of one link.

The engine moves large transfers. The lanes move small ones, check reads before and after, ask the
peer's threads to move what was pushed, and carry out everything that the engine cannot do at the
moment. So when the engine fails the outcome is the lanes'.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_datadist._backends.base import Channel, Finished
from llm_datadist._backends.nixl.bindings import NUM_POSTING_THREADS
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._plan import NO_PLAN

if TYPE_CHECKING:
    from llm_datadist._backends.base import Handle
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.nixl.connections import Connection
    from llm_datadist._backends.nixl.grants import Grants
    from llm_datadist._backends.nixl.pipeline import Pipeline
    from llm_datadist._backends.nixl.pull import Pull
    from llm_datadist._backends.nixl.push import Push
    from llm_datadist._backends.nixl.remote_memory import RemoteMemory
    from llm_datadist._backends.transfer import Transfer


@dataclass(eq=False)
class NixlChannel(Channel):
    """See the module.

    Attributes:
        lanes: The link's.
        connection: Of the engine to the peer.
        grants: Slots granted to peers; the link's are revoked when the channel closes.
        remote_memory: The peer's.
        pipeline, pull, push: Move what the engine moves.
        small_bytes: Up to this size the lanes move everything.
        facts: About the engine, for `describe`.
    """

    name = "nixl"
    reaches_devices = True

    lanes: LinkLanes
    connection: Connection
    grants: Grants
    remote_memory: RemoteMemory
    pipeline: Pipeline
    pull: Pull
    push: Push
    small_bytes: int
    facts: dict[str, object]

    def __post_init__(self) -> None:
        self._num_moved = 0
        self._num_over_lanes = 0
        self._last_problem = self.connection.problem
        self._changed = threading.Condition()
        self._closed = False
        self._num_running = 0

    def run(self, transfer: Transfer) -> Outcome:
        total_bytes = transfer.total_bytes
        small = total_bytes <= self.small_bytes and not transfer.on_device
        if small or total_bytes == 0:  # of no bytes: it only asks whether the cache is there
            return self._over_lanes(transfer)
        if self.connection.problem:
            return self._without_engine(transfer)
        with self._changed:
            if self._closed:
                return Outcome(Code.CANCELLED)
            self._num_running += 1
        try:
            outcome: Outcome | str = self.connection.open()
            outcome = outcome or (self.push if transfer.write else self.pull).run(transfer)
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()
        if isinstance(outcome, Outcome):
            self._num_moved += outcome.code == Code.OK
            return outcome
        self._num_over_lanes += not transfer.on_device
        self._last_problem = outcome
        return self._without_engine(transfer)

    def post(self, transfer: Transfer) -> Handle:
        return Finished(self.run(transfer))

    @property
    def trouble(self) -> str:
        return self._last_problem

    def _without_engine(self, transfer: Transfer) -> Outcome:
        """Use the lanes; of an accelerator's memory they can only say whether it is gone."""
        if not transfer.on_device:
            return self._over_lanes(transfer)
        checked = self.lanes.read(replace(transfer, write=False, plan=NO_PLAN))
        return Outcome(Code.NO_PATH) if checked.code == Code.OK else checked

    def _over_lanes(self, transfer: Transfer) -> Outcome:
        return self.lanes.write(transfer) if transfer.write else self.lanes.read(transfer)

    def forget(self, address: int, size: int) -> None:
        self.remote_memory.forget(address, size)

    def describe(self) -> dict[str, object]:
        facts = self.facts | {
            "reads": "NIXL READ into own landing slots",
            "pushes": "NIXL WRITE into the peer's landing slots, moved on by its own threads",
            "small_transfers": f"lanes, up to {self.small_bytes} bytes",
            "posting_threads": NUM_POSTING_THREADS if self.pipeline.engine_copies else 1,
            "transfers": self._num_moved,
            "over_lanes": self._num_over_lanes,
        }
        if self._last_problem:
            facts["why_over_lanes"] = self._last_problem
        return facts

    def _is_quiet(self) -> bool:
        """Whether the engine has no request of this link in progress."""
        return self.remote_memory.is_quiet and self.push.is_quiet

    def close(self) -> None:
        self.pipeline.stop()
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._num_running == 0)
        self.remote_memory.close()
        self.grants.revoke(self.lanes.link_id)
        self.connection.close(self._is_quiet)
