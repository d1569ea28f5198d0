"""The same-host data path for memory of NVIDIA GPUs.

Each process exports the allocations that have registered memory: the driver makes a handle of each,
and the published page lists it. The reader's native threads map the peer's allocation once and copy
in streams of their own, GPU to GPU, or between a GPU and host memory. A push rings a doorbell, as
for host memory: the target's threads map the initiator's allocation and copy. Memory that the
driver does not let the other process map goes over the link's lanes.

docs/design/gpu.md says how the guarantees hold.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec

from llm_datadist import _native
from llm_datadist._backends.base import Backend, Capabilities, Channel, Finished, Unavailable
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._protocol.codec import DECODE_ERRORS

if TYPE_CHECKING:
    from llm_datadist._backends.base import Handle
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import PeerEndpoint, Region, Transfer
    from llm_datadist._types.refs import Ref

logger = logging.getLogger("llm_datadist")

_MAX_GPUS = 64

Identity: TypeAlias = Annotated[str, msgspec.Meta(max_length=32, pattern="^[0-9a-f]*$")]


class GpuMetadata(msgspec.Struct, array_like=True, frozen=True):
    """The GPUs that a process sees, by identities that do not depend on the process."""

    gpus: Annotated[tuple[Identity, ...], msgspec.Meta(max_length=_MAX_GPUS)]


class GpuChannel(Channel):
    """Reads from, and doorbells to, one peer process on this host, for memory of GPUs.

    Args:
        reader: The link's reader of the peer's process, which its host channel owns.
        lanes: The link's.
        link_ref: The peer's guard of the link.
        peer: Who the peer is, for log lines.
        facts: For `describe`.
        strict: Whether memory that cannot be mapped is refused, instead of going over the lanes.
    """

    name = "cuda"
    reaches_devices = True

    def __init__(
        self,
        reader: _native.HostPeer,
        lanes: LinkLanes,
        link_ref: Ref,
        peer: str,
        facts: dict[str, object],
        *,
        strict: bool,
    ) -> None:
        # None once the channel is closed. A call takes it once, so that it lasts for the call.
        self._reader: _native.HostPeer | None = reader
        self._lanes = lanes
        self._link_ref = link_ref
        self._peer = peer
        self._facts = facts
        self._strict = strict
        self._problem = ""
        self._num_reads = self._num_pushes = self._num_over_lanes = 0

    def run(self, transfer: Transfer) -> Outcome:
        outcome = self._push(transfer) if transfer.write else self._read(transfer)
        if outcome.code != Code.SYSTEM or outcome.sys_errno != errno.EOPNOTSUPP:
            return outcome
        self._note_problem(write=transfer.write)
        if self._strict:
            return Outcome(Code.NO_PATH)
        outcome = self._lanes.move(transfer)
        self._num_over_lanes += outcome.code == Code.OK
        return outcome

    def post(self, transfer: Transfer) -> Handle:
        return Finished(self.run(transfer))

    def _read(self, transfer: Transfer) -> Outcome:
        outcome = self._read_once(transfer)
        absent = outcome.code == Code.SYSTEM and outcome.sys_errno == errno.EAGAIN
        if absent:  # pages of the peer's host memory, which its own threads bring in
            probed = self._lanes.probe(transfer)
            if probed.code != Code.OK:
                return probed._replace(moved_bytes=outcome.moved_bytes)
            outcome = self._read_once(transfer)
        self._num_reads += outcome.code == Code.OK
        return outcome

    def _read_once(self, transfer: Transfer) -> Outcome:
        reader = self._reader
        if reader is None:
            return Outcome(Code.CANCELLED)
        return Outcome(
            *reader.read(
                transfer.plan.words,
                transfer.local_ref,
                self._link_ref,
                transfer.cache_ref,
                transfer.key_ref,
                transfer.deadline_ns,
            )
        )

    def _push(self, transfer: Transfer) -> Outcome:
        outcome = self._lanes.push(transfer)
        self._num_pushes += outcome.code == Code.OK
        return outcome

    def _note_problem(self, *, write: bool) -> None:
        """Remember why memory was not mapped; log it the first time."""
        reader, is_first = self._reader, not self._problem
        if write:
            self._problem = "the peer cannot map this process's memory; its describe_link says why"
        elif reader is not None:
            self._problem = reader.gpu_problem or "the peer's GPU memory cannot be mapped"
        if is_first and not self._strict:
            logger.warning(
                "link to %s is slower than it could: memory of GPUs goes over the lanes, as %s; "
                "strict_backend has such transfers refused",
                self._peer,
                self._problem,
            )

    @property
    def trouble(self) -> str:
        return self._problem

    def forget(self, address: int, size: int) -> None:
        reader = self._reader
        if reader is not None:
            reader.unmap_range(address, size)

    def describe(self) -> dict[str, object]:
        reader = self._reader
        facts = self._facts | {
            "reads": "copies in a stream of this process, from the peer's mapped allocations",
            "pushes": "doorbell: the peer's threads map this process's allocations and copy",
            "mapped_allocations": 0 if reader is None else reader.gpu_mappings,
            "pulls": self._num_reads,
            "pushes_done": self._num_pushes,
            "over_lanes": self._num_over_lanes,
        }
        if self._problem:
            facts["trouble"] = self._problem
        return facts

    def close(self) -> None:
        """Drop the reader; the link's host channel has closed it."""
        self._reader = None


class GpuBackend(Backend):
    """The memory of GPUs that an instance shares with peers on this host; see the module.

    Args:
        node: The instance.
        strict: Whether memory that cannot be mapped is refused, instead of going over the lanes.
    """

    name = "cuda"
    capabilities = Capabilities(withdraws=True, placements=frozenset({"device"}))

    def __init__(self, node: Node, *, strict: bool = False) -> None:
        self._strict = strict
        self._exports = _native.GpuExports(node.native)
        self._gpus = tuple(_native.gpu_identities())

    def register(self, region: Region) -> None:
        if region.kind != "VRAM":
            return
        added: list[tuple[int, int]] = []
        for address, size in _ranges(region):
            problem = self._exports.add(address, size)
            if problem:
                for each in added:
                    self._exports.remove(*each)
                raise Unavailable(f"the GPU's memory cannot be shared with peers: {problem}")
            added.append((address, size))

    def deregister(self, region: Region) -> None:
        if region.kind == "VRAM":
            for address, size in _ranges(region):
                self._exports.remove(address, size)

    def remapped(self, address: int, size: int) -> None:
        self._exports.renew(address, size)

    def describe(self, _link_id: int) -> bytes:
        return msgspec.msgpack.encode(GpuMetadata(self._gpus))

    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> Channel:
        del peer, lanes
        raise Unavailable("it moves memory of GPUs only")

    def connect_device(self, peer: PeerEndpoint, lanes: LinkLanes) -> GpuChannel:
        metadata = peer.metadata.get(self.name)
        if metadata is None:
            raise Unavailable('the peer has no GPU, or its llm.Device is not "cuda"')
        try:
            gpus = msgspec.msgpack.decode(metadata, type=GpuMetadata).gpus
        except DECODE_ERRORS as error:
            raise Unavailable(f"the peer's description cannot be read ({error})") from error
        if lanes.host is None:
            raise Unavailable("the peer's process cannot be read on this host")
        lanes.host.use_gpus()  # also for the peer's pushes, if this side can read none of its GPUs
        if not set(gpus) <= set(self._gpus):
            raise Unavailable(
                "the peer sees GPUs that this process does not: give both the same "
                "CUDA_VISIBLE_DEVICES"
            )
        facts: dict[str, object] = {"gpus": len(self._gpus), "peer_gpus": len(gpus)}
        name = f"cluster {peer.cluster_id}"
        return GpuChannel(lanes.host, lanes, peer.link_ref, name, facts, strict=self._strict)


def _ranges(region: Region) -> zip[tuple[int, int]]:
    return zip(region.addresses.tolist(), region.sizes.tolist(), strict=True)
