"""
Native core of llm_datadist: bytes moving and threads serving peers. No policy.
"""

from collections.abc import Sequence

import numpy
import numpy.typing

class Node:
    """
    One instance: its published page (guards, directory), its entries.

    Thread-safe. A guard is (index, value): live while its word equals the odd value. Peers on the
    same host see guards and directory without asking this process.
    """

    def __init__(
        self, incarnation: int, guard_capacity: int = 1048576, log_capacity: int = 67108864
    ) -> None:
        """Make the published page; OSError when the memory cannot be had."""

    @property
    def incarnation(self) -> int:
        """Random 64-bit name of this life."""

    @property
    def published_fd(self) -> int:
        """The sealed memory file that peers on the same host map read-only."""

    @property
    def published_bytes(self) -> int:
        """Size of that file."""

    @property
    def page_address(self) -> int:
        """
        Where this process has it mapped: peers look for the proof of their link there.
        """

    @property
    def consumed_fd(self) -> int:
        """An eventfd, readable while consumed() has something to give."""

    def version(self) -> int:
        """
        The directory's version: era << 40 | bytes; the era is odd while it is rewritten.
        """

    def append(self, record: bytes) -> None:
        """
        Append one directory record; ValueError when the log is full (rewrite it).
        """

    def rewrite(self, records: bytes) -> None:
        """Replace the whole directory; ValueError when it does not fit."""

    def read_log(self, offset: int, size: int) -> bytes:
        """Directory bytes [offset, offset + size), clamped to the log."""

    def open_guard(self) -> tuple[int, int]:
        """Open the guard of a link or a pool. ValueError when none is left."""

    def close_guard(self, index: int, value: int) -> bool:
        """Kill and free it; False when it was not live at that value."""

    def open_key(self) -> tuple[int, int]:
        """
        Open a guard that names a key: one that a peer can consume. ValueError when none is left.
        """

    def close_key(self, index: int, value: int) -> bool:
        """
        Kill and free the guard of a key; False when it was not live at that value.
        """

    def show_proof(self, link_ref: tuple[int, int], proof: bytes) -> None:
        """
        Show the 16 bytes that tell the peer of a link that this page is its other end's.

        ValueError when the link's guard is not open.
        """

    def guard(self, index: int) -> int:
        """The guard's word now; 0 outside the page."""

    def open_entry(
        self,
        addresses: numpy.typing.NDArray[numpy.uint64],
        sizes: numpy.typing.NDArray[numpy.uint64],
        accessible: bool,
        device: int = -1,
    ) -> tuple[int, int]:
        """
        Register the address ranges of a cache; ValueError when one wraps or no guard is left.

        device is the ordinal of the accelerator that the memory is of, -1 for host memory.
        """

    def close_entry(self, index: int, value: int) -> bool:
        """
        Kill the entry and wait (for at most one batch) until no own thread touches its memory.

        False when it was not live at that value.
        """

    def reopen_entry(self, index: int, value: int) -> int:
        """
        Kill, wait, and make it live again; the new value, or 0 when it was not live.
        """

    def touch(
        self,
        addresses: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        entry_ref: tuple[int, int],
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        Bring own pages of an entry into memory on a thread of the library's.

        Returns (code, errno, index, 0): OK, LOCAL_GONE, LOCAL_FAULT or DENIED (outside the entry) with the
        range's index, or TIMEOUT at the deadline, whatever the pages do.
        """

    def consumed(self) -> list[tuple[int, int]]:
        """Keys that peers consumed since the last call."""

    def close(self) -> None:
        """
        Kill the instance's guard; operations of this instance end with CLOSED. Idempotent.
        """

class Segment:
    """Memory of a pool: a sealed memory file, mapped read-write."""

    def __init__(self, size: int, name: str) -> None:
        """Pages are committed when first touched; OSError when refused."""

    @property
    def fd(self) -> int:
        """The memory file, for peers on the same host; -1 once it is closed."""

    @property
    def address(self) -> int:
        """Where it is mapped; 0 after close()."""

    @property
    def size(self) -> int:
        """Bytes; 0 after close()."""

    def close_file(self) -> None:
        """Close the file; the memory stays. Idempotent."""

    def close(self) -> None:
        """Unmap. Nothing may use the memory any more. Idempotent."""

OK: int = 0

GONE: int = 1

LOCAL_GONE: int = 2

TIMEOUT: int = 3

PEER_DEAD: int = 4

REMOTE_FAULT: int = 5

LOCAL_FAULT: int = 6

DENIED: int = 7

STALE: int = 8

CLOSED: int = 9

PROTOCOL: int = 10

SYSTEM: int = 11

CANCELLED: int = 12

NO_LANE: int = 13

def copy(
    dst: numpy.typing.NDArray[numpy.uint64],
    src: numpy.typing.NDArray[numpy.uint64],
    length: numpy.typing.NDArray[numpy.uint64],
    node: Node | None,
    dst_ref: tuple[int, int],
    src_ref: tuple[int, int],
    deadline_ns: int,
) -> tuple[int, int, int, int]:
    """
    Copy length[i] bytes from address src[i] to dst[i], on several threads when it is worth it.

    Source and destination ranges must not overlap. With a node, dst_ref and src_ref name entries of it
    that must stay live; (0, 0) checks nothing. Returns (code, errno, index, moved_bytes): OK, TIMEOUT,
    CLOSED, LOCAL_GONE or LOCAL_FAULT for the destination, GONE or REMOTE_FAULT for the source, with the
    index of the pair. When it returns nothing is written any more.
    """

def set_device_driver(
    set_context: int, copy: int, synchronize: int, queues: Sequence[tuple[int, int]]
) -> None:
    """
    Tell the addresses of the accelerator driver's functions, and (context, stream) of each accelerator, (0, 0) for one that is not used.

    Each function returns 0 for success: set_context(context), copy(dst, src, bytes, stream),
    synchronize(stream). To be called before the first entry of an accelerator.
    """

def checksum(
    addresses: numpy.typing.NDArray[numpy.uint64],
    length: numpy.typing.NDArray[numpy.uint64],
    node: Node,
    ref: tuple[int, int],
    deadline_ns: int,
) -> tuple[tuple[int, int, int, int], bytes]:
    """
    (outcome, CRC-32C of each range of own memory as native uint32).

    ref names an entry of the node that must stay live; (0, 0) checks nothing. The outcome is OK,
    TIMEOUT, CLOSED, LOCAL_GONE, or LOCAL_FAULT with the index of the range.
    """

def probe(
    addresses: numpy.typing.NDArray[numpy.uint64],
    length: numpy.typing.NDArray[numpy.uint64],
    deadline_ns: int,
) -> bytes:
    """
    One byte for each range of own memory, in order: 1 if each of its pages can be read, else 0.

    Ranges that the deadline leaves no time for are left out at the end. Runs on the calling thread
    and holds nothing, so that memory which never answers keeps only the caller.
    """

def crc32c(data: bytes) -> int:
    """CRC-32C of bytes."""

def set_threads(count: int) -> None:
    """
    Set the threads of one operation, the caller's included; 0 = from the cores, at most 8.
    """

def threads() -> int:
    """Threads of one operation, the caller's included."""

class HostPeer:
    """
    A peer process on the same host, read without its help. Thread-safe; keeps the node alive.
    """

    def __init__(
        self,
        node: Node,
        pid: int,
        incarnation: int,
        page_address: int,
        published_fd: int,
        published_bytes: int,
        link_index: int,
        proof: bytes,
    ) -> None:
        """
        Map the peer's published page and check that the process is the other end of a link.

        The process must have that page mapped at page_address, writable, and show the link's proof there, beside
        the guard link_index. OSError, with the reason, when the page cannot be opened or mapped, is not the
        incarnation's, shows another proof, or when process_vm_readv is refused.
        """

    @staticmethod
    def own(node: Node) -> HostPeer:
        """A reader of own memory, for landing slots. OSError as above."""

    def map_segment(
        self, fd: int, remote_address: int, size: int, guard_ref: tuple[int, int] = (0, 0)
    ) -> None:
        """
        Map pool memory of the peer; reads inside it become copies while guard_ref is live.

        OSError when it cannot be mapped, could be shrunk, or is not at that address in the peer.
        """

    def unmap_range(self, remote_address: int, size: int) -> None:
        """
        Read that range through process_vm_readv again: it is no longer the mapped file.
        """

    def restrict_to(self, remote_address: int, size: int) -> None:
        """
        Refuse reads of anything else with DENIED. ValueError for an empty or wrapping range.
        """

    def version(self) -> int:
        """The version of the peer's directory now."""

    def guard(self, index: int) -> int:
        """The word of the peer's guard now; 0 outside its page."""

    def read_log(self, offset: int, size: int) -> bytes:
        """
        Directory bytes [offset, offset + size), clamped; valid if version() is the same after.
        """

    def read(
        self,
        local: numpy.typing.NDArray[numpy.uint64],
        remote: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        local_ref: tuple[int, int],
        link_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        Copy length[i] bytes from the peer's remote[i] to local[i].

        local_ref is an entry of the own node, the other refs are guards of the peer; (0, 0) checks nothing.
        They are checked before every batch and after the last: OK means that all were live until the bytes
        had arrived. Returns (code, errno, index, moved_bytes): OK, GONE, LOCAL_GONE, TIMEOUT, PEER_DEAD,
        REMOTE_FAULT and LOCAL_FAULT with the descriptor's index, CLOSED, CANCELLED, or SYSTEM with errno: EAGAIN when pages of the peer are absent.
        When it returns nothing is written any more.
        """

    def read_and_sum(
        self,
        local: numpy.typing.NDArray[numpy.uint64],
        remote: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        local_ref: tuple[int, int],
        link_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        deadline_ns: int,
    ) -> tuple[tuple[int, int, int, int], bytes]:
        """
        As read: (outcome, CRC-32C of what has arrived by each descriptor, as native uint32).
        """

    def close(self) -> None:
        """
        Running reads end with CANCELLED; returns when none is left. Idempotent.
        """

class LaneSocket:
    """
    A connected, authenticated socket that is to become a lane. Its owner is the one that
    it is given to, once.
    """

    def __init__(
        self, fd: int, send_key: bytes, receive_key: bytes, clock_offset_ns: int = 0
    ) -> None:
        """
        Take over a socket, also when OSError comes; not when a key is not 16 bytes long.

        send_key: of the tags of what goes to the other end; receive_key: of what comes.
        clock_offset_ns: the other end's CLOCK_MONOTONIC less the own one, at most.
        """

    def close(self) -> None:
        """Close it, unless somebody has it. Idempotent."""

class LaneServer:
    """
    Serves the lanes of an instance's links with a few native threads. Thread-safe.
    """

    def __init__(self, node: Node) -> None: ...
    def serve(self, socket: LaneSocket, link_id: int) -> None:
        """
        Serve the peer on a lane; its ownership passes, also when OSError comes.
        """

    def attach_host(self, link_id: int, host_peer: HostPeer) -> None:
        """Carry out that link's pushes by reading the peer's memory."""

    def attach_landing(self, link_id: int, landing: HostPeer) -> None:
        """
        Carry out that link's pushes, where there is no other way, by reading landing slots of this process.
        """

    def drop_link(self, link_id: int) -> None:
        """
        Close the link's lanes; on return none of its operations touches memory any more.
        """

    def link_lanes(self, link_id: int) -> int:
        """Number of open lanes of the link."""

    def take_offences(self) -> list[tuple[int, int, int]]:
        """
        What peers asked for since the last call that no correct one does: [(link_id, malformed frames, pushes
        of bytes outside the initiator's entry), ...].
        """

    def statistics(self) -> dict[str, int]:
        """
        Counts since the start: requests, refused, protocol_errors, strayed_pushes, bytes by kind; and lanes.
        """

    def close(self) -> None:
        """Drop every link and serve no more. Idempotent."""

class ChecksumQuestion:
    """
    A question for checksums of the peer's memory. It keeps a lane until `wait`, so that nothing
    that needs another lane may be waited for meanwhile.
    """

    def wait(self) -> tuple[tuple[int, int, int, int], bytes]:
        """
        (outcome, CRC-32C of each range as native uint32). Once only: RuntimeError after that.
        """

class Lanes:
    """
    The initiator's end of a link's lanes. Thread-safe; an operation runs on the calling thread
    and ends by deadline_ns (time.monotonic_ns); one that lets the peer write may take 40 ms
    more to see it stop. Outcomes are (code, errno, index, moved_bytes); NO_LANE: none is
    left, so nothing was asked.
    """

    def __init__(self, node: Node, link_id: int) -> None: ...
    def add(self, socket: LaneSocket) -> None:
        """Take over a lane, also when OSError comes; all lead to one peer."""

    def count(self) -> int:
        """Number of open lanes."""

    def prune(self) -> int:
        """
        Close idle lanes that the peer has closed; number of open lanes after that.
        """

    def read(
        self,
        local: numpy.typing.NDArray[numpy.uint64],
        remote: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        local_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """Read remote ranges into local ones."""

    def write(
        self,
        local: numpy.typing.NDArray[numpy.uint64],
        remote: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        local_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """Write local ranges to remote ones; ok means applied there."""

    def push(
        self,
        local: numpy.typing.NDArray[numpy.uint64],
        remote: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        local_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        As write, but the peer's threads fetch the bytes from this process (same host).

        Without a local_ref they lie in landing slots at the peer, and local counts from there.
        """

    def probe(
        self,
        remote: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """Have the peer look whether it can read each page of remote ranges."""

    def ask_checksum(
        self,
        remote: numpy.typing.NDArray[numpy.uint64],
        length: numpy.typing.NDArray[numpy.uint64],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> ChecksumQuestion:
        """
        Ask for the CRC-32C of each remote range, which the peer's threads compute.
        """

    def consume(self, index: int, value: int, deadline_ns: int) -> tuple[int, int, int, int]:
        """Consume a key of the peer; ok for exactly one of all callers."""

    def version(self, deadline_ns: int) -> tuple[tuple[int, int, int, int], int]:
        """(outcome, version of the peer's directory)."""

    def read_log(
        self, offset: int, size: int, deadline_ns: int
    ) -> tuple[tuple[int, int, int, int], bytes]:
        """
        (outcome, bytes of the peer's directory log), clamped to the log's capacity.
        """

    def ping(self, deadline_ns: int) -> tuple[int, int, int, int]:
        """One round trip on a free lane."""

    def close(self) -> None:
        """
        End running operations (CANCELLED), wait for them, close the lanes. Idempotent.
        """

def ping_all(links: Sequence[Lanes], deadline_ns: int) -> list[tuple[int, int, int, int]]:
    """
    Ping the peers of many links at once, on one free lane each: their outcomes, in order.
    A link whose lanes are all in use gets TIMEOUT at once.
    """
