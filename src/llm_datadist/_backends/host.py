"""The same-host data path: each process reads its peer's memory, and writes only its own.

Reads use process_vm_readv, or plain copies if the memory belongs to a pool that this process has
mapped. A push rings a doorbell on a lane, and the peer's native threads fetch the bytes.

The process id in a peer's metadata is not trusted: the peer's published page must show the proof of
this link.

A thread that waits for an absent page of another process cannot be interrupted, so the owner brings
absent pages into memory first. Lanes move memory that is healthy but cannot be read from outside
(secret memory, or a driver's). Memory is at fault only if its owner cannot read it either.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec
import numpy as np

from llm_datadist import _native
from llm_datadist._backends.base import Backend, Capabilities, Channel, Finished, Unavailable
from llm_datadist._backends.node import is_of_this_process
from llm_datadist._backends.outcomes import OK, Code, Outcome, as_outcome
from llm_datadist._protocol.codec import DECODE_ERRORS
from llm_datadist._protocol.messages import Uint64
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from llm_datadist._backends.base import Handle
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.outcomes import Checksums
    from llm_datadist._backends.transfer import PeerEndpoint, Transfer, U64Array
    from llm_datadist._devices.cpu import PoolMemory
    from llm_datadist._types.refs import Ref


_NOT_READ = frozenset({Code.SYSTEM, Code.REMOTE_FAULT})
"""Outcomes of a read that the owner, or the lanes, may still be able to carry out."""

_NOT_FETCHED = frozenset({Code.SYSTEM, Code.LOCAL_FAULT})
"""Outcomes of a push that this side, or the lanes, may still be able to carry out."""

_ENDS_GATHER = frozenset({Code.OK, Code.GONE, Code.LOCAL_GONE, Code.CLOSED, Code.CANCELLED})
"""Outcomes of gathering that a read of the peer's memory would have as well."""

_GATHER_NS = 100_000_000
_GATHER_NS_PER_BYTE = 4.0
_GATHER_SHARE = 4
"""How long a gathering may take: a time, with more for each byte, but a part of what is left."""

_GATHER_PAUSE_NS = 1_000_000_000
"""Reads do without for this long after one that failed."""

_MOST_UNREADABLE = 1024

Fd: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Pid: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]


class SegmentMetadata(msgspec.Struct, array_like=True, frozen=True):
    """Pool memory that a peer may map read-only, and use while the guard is alive."""

    fd: Fd
    address: Uint64
    size: Uint64
    guard: tuple[Uint64, Uint64]


class HostMetadata(msgspec.Struct, array_like=True, frozen=True):
    """What a peer on the same host needs to read this process's memory."""

    boot_id: Name
    pid_namespace: Name
    pid: Pid
    page_address: Uint64
    published_fd: Fd
    published_bytes: Uint64
    segments: Annotated[tuple[SegmentMetadata, ...], msgspec.Meta(max_length=16)] = ()


def boot_id() -> str:
    """Return the identity of this host since its boot, or "" if /proc cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _is_own_user(pid: int) -> bool:
    """Return whether a process belongs to the same user as this one."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False


def pid_namespace() -> str:
    """Return the identity of the process-id namespace; pids are comparable only inside one."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


class HostChannel(Channel):
    """Reads from, and doorbells to, one peer process on this host."""

    name = "host"
    reads_and_sums = True

    def __init__(
        self, node: Node, peer: PeerEndpoint, reader: _native.HostPeer, lanes: LinkLanes
    ) -> None:
        self._touch = node.touch
        # None once the channel is closed. A call takes it once, so that it lasts for the call.
        self._reader: _native.HostPeer | None = reader
        self._lanes = lanes
        self._link_ref = peer.link_ref
        self._pushes_refused = ""
        self._reads_refused = ""
        # Caches that only their owner can read.
        self._unreadable_local: set[Ref] = set()
        self._unreadable_remote: set[Ref] = set()
        self._mapped: list[tuple[int, int]] = []  # first byte, end
        self._gathers_after_ns = 0
        self._gathered_bytes = 0

    def map_segment(self, segment: SegmentMetadata) -> None:
        """Map pool memory of the peer; if that is refused, reads use process_vm_readv."""
        reader = self._reader
        if reader is None:
            return
        try:
            reader.map_segment(segment.fd, segment.address, segment.size, segment.guard)
        except OSError:
            return
        self._mapped.append((segment.address, segment.address + segment.size))

    def run(self, transfer: Transfer) -> Outcome:
        if transfer.write:
            return self._push(transfer)
        if self._unreadable_remote and transfer.cache_ref in self._unreadable_remote:
            return self._lanes.read(transfer)
        if transfer.gather:
            outcome = self._gather(transfer)
            if outcome.code in _ENDS_GATHER:
                return outcome
        outcome = self._read(transfer)
        return outcome if outcome.code not in _NOT_READ else self._retry_read(transfer, outcome)

    def gathers(self, remote: U64Array) -> bool:
        """Whether the peer's threads may gather: what is mapped is copied, which is faster."""
        if not len(remote) or time.monotonic_ns() < self._gathers_after_ns:
            return False
        if not self._mapped:
            return True
        first, last = int(remote.min()), int(remote.max())
        return not any(begin <= last and first < end for begin, end in self._mapped)

    def _gather(self, transfer: Transfer) -> Outcome:
        """Have the peer's threads gather the bytes of a read, if they do so soon.

        Reads do not need them, so a peer that is frozen or busy does not delay one for long.
        """
        begin_ns = time.monotonic_ns()
        patience_ns = _GATHER_NS + int(transfer.total_bytes * _GATHER_NS_PER_BYTE)
        deadline_ns = min(
            begin_ns + patience_ns, begin_ns + (transfer.deadline_ns - begin_ns) // _GATHER_SHARE
        )
        outcome = self._lanes.gather(transfer, self._link_ref, deadline_ns)
        if outcome.code == OK:
            self._gathered_bytes += transfer.total_bytes
        elif outcome.code not in _ENDS_GATHER:
            self._gathers_after_ns = time.monotonic_ns() + _GATHER_PAUSE_NS
        return outcome

    def read_and_sum(self, transfer: Transfer) -> tuple[Outcome, Checksums]:
        reader = self._reader
        if reader is None:
            return Outcome(Code.CANCELLED), np.empty(0, np.uint32)
        outcome, sums = reader.read_and_sum(
            transfer.plan.words,
            transfer.local_ref,
            self._link_ref,
            transfer.cache_ref,
            transfer.key_ref,
            transfer.deadline_ns,
        )
        return as_outcome(outcome), np.frombuffer(sums, np.uint32)

    def _read(self, transfer: Transfer) -> Outcome:
        reader = self._reader
        if reader is None:
            return Outcome(Code.CANCELLED)
        return as_outcome(
            reader.read(
                transfer.plan.words,
                transfer.local_ref,
                self._link_ref,
                transfer.cache_ref,
                transfer.key_ref,
                transfer.deadline_ns,
            )
        )

    def post(self, transfer: Transfer) -> Handle:
        return Finished(self.run(transfer))

    def _retry_read(self, transfer: Transfer, outcome: Outcome) -> Outcome:
        """Carry out a read that the system call could not."""
        absent = outcome.code == Code.SYSTEM and outcome.sys_errno == errno.EAGAIN
        if outcome.code == Code.SYSTEM and not absent:
            self._reads_refused = os.strerror(outcome.sys_errno)
            return self._lanes.read(transfer)
        probed = self._lanes.probe(transfer)  # also brings absent pages in
        if probed.code != Code.OK:
            return probed._replace(moved_bytes=outcome.moved_bytes)
        if absent:
            outcome = self._read(transfer)
            if outcome.code not in _NOT_READ:
                return outcome
        if outcome.code == Code.REMOTE_FAULT:
            _add(self._unreadable_remote, transfer.cache_ref)
        return self._lanes.read(transfer)

    def _push(self, transfer: Transfer) -> Outcome:
        local_ref = transfer.local_ref
        if local_ref == NO_REF or (self._unreadable_local and local_ref in self._unreadable_local):
            return self._lanes.write(transfer)
        outcome = self._lanes.push(transfer)
        if outcome.code in _NOT_FETCHED:
            return self._retry_push(transfer, outcome)
        return outcome

    def _retry_push(self, transfer: Transfer, outcome: Outcome) -> Outcome:
        """Carry out a push whose bytes the peer could not fetch."""
        absent = outcome.code == Code.SYSTEM and outcome.sys_errno == errno.EAGAIN
        if absent or outcome.code == Code.LOCAL_FAULT:
            # Whether local memory can be read is checked here, not believed from the peer.
            touched = self._touch(
                transfer.local, transfer.length, transfer.local_ref, transfer.deadline_ns
            )
            if touched.code != Code.OK:
                return touched._replace(moved_bytes=outcome.moved_bytes)
        if absent:
            outcome = self._lanes.push(transfer)
            if outcome.code not in _NOT_FETCHED:
                return outcome
        if outcome.code == Code.LOCAL_FAULT:
            _add(self._unreadable_local, transfer.local_ref)
        elif outcome.sys_errno not in {errno.EAGAIN, errno.EOPNOTSUPP, errno.EUSERS}:
            # The peer may not read this process (a one-sided ptrace policy).
            self._pushes_refused = os.strerror(outcome.sys_errno)
        return self._lanes.write(transfer)

    def version(self) -> int | None:
        """Return the version of the peer's directory; None once the channel is closed."""
        reader = self._reader
        return None if reader is None else reader.version()

    def read_log(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the peer's directory; None once the channel is closed."""
        reader = self._reader
        return None if reader is None else reader.read_log(offset, size)

    def guard(self, index: int) -> int:
        """Return the value of a guard of the peer; 0 once the channel is closed."""
        reader = self._reader
        return 0 if reader is None else reader.guard(index)

    def forget(self, address: int, size: int) -> None:
        reader = self._reader
        if reader is not None:
            reader.unmap_range(address, size)

    def describe(self) -> dict[str, object]:
        pushes = "doorbell: the peer's threads fetch the bytes"
        if self._pushes_refused:
            pushes = f"over the lanes: the peer cannot read this process ({self._pushes_refused})"
        reads = "process_vm_readv and mapped pools"
        if self._reads_refused:
            reads = f"over the lanes: the peer's memory cannot be read ({self._reads_refused})"
        elif self._unreadable_remote:
            reads += _exceptions(self._unreadable_remote)
        if self._unreadable_local and not self._pushes_refused:
            pushes += _exceptions(self._unreadable_local)
        return {
            "reads": reads,
            "gathered_bytes": self._gathered_bytes,
            "pushes": pushes,
            "mapped_pool_bytes": sum(end - begin for begin, end in self._mapped),
        }

    def close(self) -> None:
        """End all reads, and drop what is mapped of the peer.

        Must be explicit: a caller may keep an exception or a lease, which keep this object.
        """
        reader = self._reader
        if reader is not None:
            reader.close()
            self._reader = None


def _add(unreadable: set[Ref], ref: Ref) -> None:
    if len(unreadable) >= _MOST_UNREADABLE:  # most of these caches are gone
        unreadable.clear()
    unreadable.add(ref)


def _exceptions(unreadable: set[Ref]) -> str:
    return f"; over the lanes for {len(unreadable)} caches that only their owner can read"


class HostBackend(Backend):
    """See the module.

    Args:
        node: The instance.
        pools: Pool memory that peers may map.
        any_user: Whether to link to processes of other users; needs a secret or TLS.
    """

    name = "host"
    capabilities = Capabilities(placements=frozenset({"host"}))

    def __init__(self, node: Node, pools: tuple[PoolMemory, ...], *, any_user: bool) -> None:
        self._node = node
        self._any_user = any_user
        self._lock = threading.Lock()
        self._segments = [
            SegmentMetadata(pool.fd, pool.address, pool.size, node.open_guard()) for pool in pools
        ]

    def remapped(self, address: int, size: int) -> None:
        """Withdraw a pool whose pages were replaced: its file no longer is its memory.

        Reads of it use process_vm_readv from then on, on old and on new links.
        """
        with self._lock:
            for segment in list(self._segments):
                if segment.address < address + size and address < segment.address + segment.size:
                    self._segments.remove(segment)
                    self._node.close_guard(*segment.guard)

    def describe(self, _link_id: int) -> bytes:
        native = self._node.native
        with self._lock:
            segments = tuple(self._segments)
        return msgspec.msgpack.encode(
            HostMetadata(
                boot_id=boot_id(),
                pid_namespace=pid_namespace(),
                pid=os.getpid(),
                page_address=native.page_address,
                published_fd=native.published_fd,
                published_bytes=native.published_bytes,
                segments=segments,
            )
        )

    def connect(self, peer: PeerEndpoint, lanes: LinkLanes) -> HostChannel:
        metadata = peer.metadata.get(self.name)
        if metadata is None:
            raise Unavailable("the peer does not offer it")
        try:
            peer_metadata = msgspec.msgpack.decode(metadata, type=HostMetadata)
        except DECODE_ERRORS as error:
            raise Unavailable(f"the peer's description cannot be read ({error})") from error
        local_boot_id = boot_id()
        if not local_boot_id or not peer_metadata.boot_id:
            side = "at the peer" if local_boot_id else "here"
            raise Unavailable(f"/proc cannot be read {side}: mount it there for the same-host path")
        if peer_metadata.boot_id != local_boot_id:
            raise Unavailable("the peer runs on another host")
        if peer_metadata.pid_namespace != pid_namespace():
            raise Unavailable("the peer lives in another process-id namespace")
        if (peer_metadata.pid == os.getpid()) is not is_of_this_process(peer.incarnation):
            raise Unavailable("the peer does not run in the process that it names")
        if not self._any_user and not _is_own_user(peer_metadata.pid):
            raise Unavailable(
                "its process is another user's; run both processes as one user, or give both sides "
                "a link_secret or TLS, and the capabilities SYS_PTRACE and DAC_READ_SEARCH"
            )
        try:
            reader = _native.HostPeer(
                self._node.native,
                peer_metadata.pid,
                peer.incarnation,
                peer_metadata.page_address,
                peer_metadata.published_fd,
                peer_metadata.published_bytes,
                peer.link_ref[0],
                peer.page_proof,
            )
        except OSError as error:
            raise Unavailable(f"its memory cannot be read: {error}") from error
        channel = HostChannel(self._node, peer, reader, lanes)
        for segment in peer_metadata.segments:
            channel.map_segment(segment)
        lanes.attach_host(reader)
        return channel
