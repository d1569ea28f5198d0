"""
Native core of llm_datadist: moves bytes and serves peers with native threads.
"""

from collections.abc import Sequence

import numpy
import numpy.typing

class Node:
    """
    One instance: its published page (guards, directory) and its entries.

    Thread-safe. A guard is (index, value): live while its word equals the odd value. Peers
    on the same host read guards and directory without help from this process.
    """

    def __init__(
        self, incarnation: int, guard_capacity: int = 1048576, log_capacity: int = 67108864
    ) -> None:
        """Create the published page. OSError if the memory cannot be allocated."""

    @property
    def incarnation(self) -> int:
        """Random 64-bit name of this instance."""

    @property
    def copy_way(self) -> int:
        """
        How memory of GPUs is copied: 0 by the size of the descriptors, 1 by a kernel where one can,
        2 by copy engines.
        """

    @copy_way.setter
    def copy_way(self, arg: int, /) -> None: ...
    @property
    def published_fd(self) -> int:
        """The sealed memory file that peers on the same host map read-only."""

    @property
    def published_bytes(self) -> int:
        """Size of that file in bytes."""

    @property
    def page_address(self) -> int:
        """Its address in this process, where peers read the proof of their link."""

    @property
    def consumed_fd(self) -> int:
        """An eventfd, readable while consumed() would return keys."""

    def version(self) -> int:
        """
        Return the directory's version: era << 40 | bytes. The era is odd during a rewrite.
        """

    def append(self, record: bytes) -> None:
        """
        Append one directory record. ValueError if the log is full and must be rewritten.
        """

    def rewrite(self, records: bytes) -> None:
        """Replace the whole directory. ValueError if it does not fit."""

    def read_log(self, offset: int, size: int) -> bytes:
        """Return directory bytes [offset, offset + size), clamped to the log."""

    def open_guard(self) -> tuple[int, int]:
        """Open the guard of a link or a pool. ValueError if no guard is left."""

    def close_guard(self, index: int, value: int) -> bool:
        """Kill and free the guard. False if it was not live at that value."""

    def open_key(self) -> tuple[int, int]:
        """
        Open the guard of a key, which a peer can consume. ValueError if no guard is left.
        """

    def close_key(self, index: int, value: int) -> bool:
        """
        Kill and free the guard of a key. False if it was not live at that value.
        """

    def show_proof(self, link_ref: tuple[int, int], proof: bytes) -> None:
        """
        Show the 16 bytes that prove to the peer of a link that this page is its other end's.

        ValueError if the link's guard is not open.
        """

    def guard(self, index: int) -> int:
        """Return the guard's current word; 0 outside the page."""

    def open_entry(
        self,
        addresses: numpy.typing.NDArray[numpy.uint64] | bytes,
        sizes: numpy.typing.NDArray[numpy.uint64] | bytes,
        accessible: bool,
        device: int = -1,
    ) -> tuple[int, int]:
        """
        Register the address ranges of a cache. ValueError if one wraps or no guard is left.

        device is the ordinal of the accelerator that has the memory, -1 for host memory.
        """

    def close_entry(self, index: int, value: int) -> bool:
        """
        Kill the entry and wait, for at most one batch, until no local thread accesses its memory.

        False if it was not live at that value.
        """

    def reopen_entry(self, index: int, value: int) -> int:
        """
        Kill the entry, wait, and make it live again. Returns the new value, 0 if it was not live.
        """

    def suspend_entry(self, index: int, value: int) -> bool:
        """
        Kill the entry and wait, as close_entry(), but keep it for resume_entry().
        """

    def resume_entry(self, index: int) -> int:
        """Make a suspended entry live again. Returns the new value."""

    def touch(
        self,
        addresses: numpy.typing.NDArray[numpy.uint64] | bytes,
        length: numpy.typing.NDArray[numpy.uint64] | bytes,
        entry_ref: tuple[int, int],
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        Bring pages of an entry into memory, on a thread of the library.

        Returns (code, errno, index, 0): OK, LOCAL_GONE, LOCAL_FAULT or DENIED (outside the
        entry) with the range's index, or TIMEOUT at the deadline, even if the pages never come.
        """

    def consumed(self) -> list[tuple[int, int]]:
        """Return the keys that peers consumed since the last call."""

    def close(self) -> None:
        """
        Kill the instance's guard; operations of this instance end with CLOSED. Idempotent.
        """

class Segment:
    """Memory of a pool: a sealed memory file, mapped read-write."""

    def __init__(self, size: int, name: str) -> None:
        """
        Pages are committed at the first access. OSError if it cannot be created.
        """

    @property
    def fd(self) -> int:
        """The memory file, for peers on the same host; -1 once it is closed."""

    @property
    def address(self) -> int:
        """Its address; 0 after close()."""

    @property
    def size(self) -> int:
        """Size in bytes; 0 after close()."""

    def close_file(self) -> None:
        """Close only the file; the memory stays. Idempotent."""

    def close(self) -> None:
        """Unmap it. The memory must not be in use any more. Idempotent."""

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
    dst: numpy.typing.NDArray[numpy.uint64] | bytes,
    src: numpy.typing.NDArray[numpy.uint64] | bytes,
    length: numpy.typing.NDArray[numpy.uint64] | bytes,
    node: Node | None,
    dst_ref: tuple[int, int],
    src_ref: tuple[int, int],
    deadline_ns: int,
) -> tuple[int, int, int, int]:
    """
    Copy length[i] bytes from address src[i] to dst[i], large copies on several threads.

    Source and destination ranges must not overlap. With a node, dst_ref and src_ref name
    entries that must stay live; (0, 0) checks nothing. Returns (code, errno, index,
    moved_bytes): OK, TIMEOUT, CLOSED, LOCAL_GONE or LOCAL_FAULT for the destination, GONE or
    REMOTE_FAULT for the source, with the index of the pair. When it returns, nothing is
    written any more. A GPU that hangs may still complete the chunks that it was given; until
    then they keep both entries.
    """

def checksum(
    addresses: numpy.typing.NDArray[numpy.uint64] | bytes,
    length: numpy.typing.NDArray[numpy.uint64] | bytes,
    node: Node,
    ref: tuple[int, int],
    deadline_ns: int,
) -> tuple[tuple[int, int, int, int], bytes]:
    """
    Return (outcome, CRC-32C of each range of local memory as native uint32).

    ref names an entry of the node that must stay live; (0, 0) checks nothing. The outcome is OK,
    TIMEOUT, CLOSED, LOCAL_GONE, or LOCAL_FAULT with the index of the range.
    """

def probe(
    addresses: numpy.typing.NDArray[numpy.uint64] | bytes,
    length: numpy.typing.NDArray[numpy.uint64] | bytes,
    deadline_ns: int,
) -> bytes:
    """
    Return one byte for each range of local memory: 1 if each of its pages can be read, else 0.

    Omits ranges at the end that were not checked before the deadline. Runs on the calling
    thread and holds nothing, so that memory that never answers blocks only the caller.
    """

def crc32c(data: bytes) -> int:
    """Return the CRC-32C of bytes."""

def set_threads(count: int) -> None:
    """
    Set the number of threads per operation, the caller's included; 0 = by the cores, at most 8.
    """

def threads() -> int:
    """Return the number of threads per operation, the caller's included."""

def load_gpu_driver() -> str:
    """
    Load and initialize the driver of NVIDIA GPUs; return why there is none, or "".
    """

def gpus_of(addresses: numpy.typing.NDArray[numpy.uint64] | bytes) -> list[int]:
    """
    Return for each address the ordinal of the GPU whose memory it is, -1 for host memory.

    Managed memory counts as host memory. Loads nothing: without a driver in this process all is
    host memory.
    """

def prepare_gpu(ordinal: int) -> str:
    """
    Make a GPU's memory usable for the library's threads; return why it is not, or "".

    Retains its primary context for the life of the process. The caller's context stays current.
    """

def gpu_identities() -> list[str]:
    """
    Return the identity of each GPU that this process sees, 32 hexadecimal digits, the same in each
    process.
    """

class GpuExports:
    """Allocations of GPUs that peers on this host may map. Thread-safe."""

    def __init__(self, node: Node) -> None: ...
    def add(self, address: int, size: int) -> str:
        """
        Publish the allocations of a range of addresses, unless that is done already.

        Returns why that is not possible, or "". It succeeds for memory that no other process can map;
        peers find the reason then.
        """

    def remove(self, address: int, size: int) -> None:
        """Undo one add() of that range."""

    def renew(self, address: int, size: int) -> None:
        """Publish the allocations of a range again, whose memory was replaced."""

def gpu_copy(ordinal: int, dst: int, src: int, size: int) -> tuple[int, int, int, int]:
    """
    Copy one range through a GPU, with one call of its driver; for measurements.

    Either address is of a GPU or of the host. Returns (code, errno, index, moved_bytes).
    """

def gpu_kernels_problem(ordinal: int) -> str:
    """
    Load the library's kernels into a GPU; return why its driver refuses them, or "".
    """

class GpuEvent:
    """
    A point in a stream of the program. Thread-safe. Needs a driver in this process:
    RuntimeError with the reason if it has none, or refuses.
    """

    @staticmethod
    def record(stream: int, device: int) -> GpuEvent:
        """
        Return a point behind all work that a stream has been given so far.

        Of a default stream (0, 1, 2) the context of the calling thread decides whose it is; without
        one it is the device's.
        """

    @staticmethod
    def borrow(handle: int, device: int) -> GpuEvent:
        """
        Return an event of the program, which must live until the last wait has ended.
        """

    def wait(self, deadline_ns: int, node: Node | None = None) -> tuple[int, int, int, int]:
        """
        Wait until the work before it has ended.

        Returns (code, errno, index, moved_bytes): OK, TIMEOUT, CLOSED when the node is, LOCAL_FAULT for
        an error of the GPU's memory, SYSTEM for another one.
        """

class GpuPool:
    """Memory of a GPU that other processes can map."""

    @property
    def address(self) -> int:
        """Its first byte."""

    @property
    def size(self) -> int:
        """Bytes, a multiple of what the driver allocates."""

    @property
    def piece_bytes(self) -> int:
        """
        Bytes of each allocation of which it consists; the last one may be shorter.
        """

    def replace(self, begins: Sequence[int], sizes: Sequence[int]) -> tuple[bool, str]:
        """
        Put new memory behind the allocations that have bytes of the ranges; keep all other bytes.

        No work with the pool may be in progress. Returns (whether the GPU is full, why it was not possible
        or ""); then nothing has changed.
        """

    def close(self) -> None:
        """Free the memory, which must not be in use any more. Idempotent."""

def make_gpu_pool(ordinal: int, size: int) -> tuple[GpuPool, bool, str]:
    """Return (pool or None, whether the GPU is full, why there is none)."""

def gpu_memory(ordinal: int) -> tuple[int, int]:
    """Return the free and all bytes of a GPU's memory."""

def pin_host_memory(ordinal: int, address: int, size: int) -> str:
    """
    Pin host memory for all GPUs, by the context of one; return why not, or "".
    """

def unpin_host_memory(ordinal: int, address: int) -> None:
    """Undo it, before the memory is unmapped."""

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

        The process must have that page mapped at page_address, writable, and show the link's
        proof there, beside the guard link_index. OSError, with the reason, if the page cannot
        be opened or mapped, belongs to another incarnation, shows another proof, or if
        process_vm_readv is not permitted.
        """

    @staticmethod
    def own(node: Node) -> HostPeer:
        """Return a reader of local memory, for landing slots. OSError as above."""

    def map_segment(
        self, fd: int, remote_address: int, size: int, guard_ref: tuple[int, int] = (0, 0)
    ) -> None:
        """
        Map pool memory of the peer; reads inside it become copies while guard_ref is live.

        OSError if it cannot be mapped, could be shrunk, or is not at that address in the peer.
        """

    def unmap_range(self, remote_address: int, size: int) -> None:
        """
        Read that range through process_vm_readv from now on: it is no longer the mapped file.
        """

    def restrict_to(self, remote_address: int, size: int) -> None:
        """
        Refuse reads outside that range with DENIED. ValueError for an empty or wrapping range.
        """

    def version(self) -> int:
        """Return the current version of the peer's directory."""

    def guard(self, index: int) -> int:
        """Return the current word of the peer's guard; 0 outside its page."""

    def read_log(self, offset: int, size: int) -> bytes:
        """
        Return directory bytes [offset, offset + size), clamped; valid if version() is unchanged.
        """

    def read(
        self,
        descriptors: numpy.typing.NDArray[numpy.uint64] | bytes,
        local_ref: tuple[int, int],
        link_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        Copy length[i] bytes from the peer's remote[i] to local[i].

        The descriptors are the local addresses, the remote ones and the lengths, one after the
        other: an array of uint64, or the same as bytes.
        local_ref is a local entry, the other refs are guards of the peer; (0, 0) checks
        nothing. They are checked before every batch and after the last: OK means that all were
        live until the bytes had arrived. Returns (code, errno, index, moved_bytes): OK, GONE,
        LOCAL_GONE, TIMEOUT, PEER_DEAD, REMOTE_FAULT and LOCAL_FAULT with the descriptor's
        index, CLOSED, CANCELLED, or SYSTEM with errno: EAGAIN if pages of the peer are absent,
        EOPNOTSUPP if memory of a GPU cannot be mapped (gpu_problem), EIO if its driver fails.
        When it returns, nothing is written any more.
        """

    def read_and_sum(
        self,
        descriptors: numpy.typing.NDArray[numpy.uint64] | bytes,
        local_ref: tuple[int, int],
        link_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        deadline_ns: int,
    ) -> tuple[tuple[int, int, int, int], bytes]:
        """
        As read; returns (outcome, CRC-32C of each descriptor's bytes as native uint32).
        """

    def use_gpus(self) -> None:
        """
        Let reads map memory of GPUs that the peer exports.

        Before that, no handle from the peer's page goes to the driver.
        """

    @property
    def gpu_problem(self) -> str:
        """Why memory of a GPU could not be mapped, most recently, or ""."""

    @property
    def gpu_mappings(self) -> int:
        """The peer's allocations of GPUs that are mapped."""

    def close(self) -> None:
        """End running reads with CANCELLED and wait for them. Idempotent."""

class LaneSocket:
    """
    A connected, authenticated socket for a lane. Passing it to a LaneServer or Lanes
    transfers its ownership, once.
    """

    def __init__(
        self, fd: int, send_key: bytes, receive_key: bytes, clock_offset_ns: int = 0
    ) -> None:
        """
        Take ownership of a socket, also if it raises OSError, but not if a key is not 16 bytes long.

        The keys are of the tags of frames sent to, and received from, the other end.
        clock_offset_ns must not exceed the other end's CLOCK_MONOTONIC minus the local one.
        """

    def close(self) -> None:
        """Close it, unless its ownership was transferred. Idempotent."""

class LaneServer:
    """
    Serves the lanes of an instance's links with a few native threads. Thread-safe.
    """

    def __init__(self, node: Node) -> None: ...
    def serve(self, socket: LaneSocket, link_id: int) -> None:
        """
        Serve the peer on a lane. Takes ownership of it, also if it raises OSError.
        """

    def attach_host(self, link_id: int, host_peer: HostPeer) -> None:
        """Serve that link's pushes by reading the peer's memory."""

    def attach_landing(self, link_id: int, landing: HostPeer) -> None:
        """
        Serve that link's pushes that cannot be served otherwise by reading landing slots of this process.
        """

    def drop_link(self, link_id: int) -> None:
        """
        Close the link's lanes. When it returns, none of its operations accesses memory any more.
        """

    def link_lanes(self, link_id: int) -> int:
        """Return the number of open lanes of the link."""

    def take_offences(self) -> list[tuple[int, int, int]]:
        """
        Return the requests since the last call that no correct peer sends: [(link_id,
        malformed frames, pushes of bytes outside the initiator's entry), ...].
        """

    def statistics(self) -> dict[str, int]:
        """
        Return counts since the start: requests, refused, protocol_errors, strayed_pushes, bytes by kind; and lanes.
        """

    def close(self) -> None:
        """Drop every link and stop serving. Idempotent."""

class ChecksumQuestion:
    """
    A request for checksums of the peer's memory. It holds a lane until `wait` returns;
    its owner must not wait for another lane meanwhile.
    """

    def wait(self) -> tuple[tuple[int, int, int, int], bytes]:
        """
        Return (outcome, CRC-32C of each range as native uint32). RuntimeError if called again.
        """

class Lanes:
    """
    The initiator's side of a link's lanes. Thread-safe.

    An operation runs on the calling thread and ends by deadline_ns (time.monotonic_ns); one
    in which the peer writes may wait 40 ms more until the peer has stopped. Outcomes are
    (code, errno, index, moved_bytes). NO_LANE: no lane is left, so nothing was sent.
    """

    def __init__(self, node: Node, link_id: int) -> None: ...
    def add(self, socket: LaneSocket) -> None:
        """
        Take ownership of a lane, also if it raises OSError. All must lead to one peer.
        """

    def count(self) -> int:
        """Return the number of open lanes."""

    def prune(self) -> int:
        """
        Close idle lanes that the peer has closed. Returns the number of lanes that remain open.
        """

    def need(self, client: int, served: int, server: LaneServer) -> None:
        """
        Say how many lanes the link needs in each direction, and which server serves its peer,
        for look_all.
        """

    def wants_more(self) -> bool:
        """
        Whether an operation had to wait for a lane, or could have used more than there were.
        """

    def read(
        self,
        descriptors: numpy.typing.NDArray[numpy.uint64] | bytes,
        local_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """Read remote ranges into local ones; descriptors as for HostPeer.read."""

    def gather(
        self,
        host_peer: HostPeer,
        descriptors: numpy.typing.NDArray[numpy.uint64] | bytes,
        local_ref: tuple[int, int],
        link_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        Have the peer's threads gather remote ranges, and read them from there (same host).

        For many short ranges. An outcome need not name a descriptor: after one other than OK, GONE,
        LOCAL_GONE, CLOSED or CANCELLED, HostPeer.read tells more. SYSTEM: EAGAIN if pages of
        the peer are absent, EOPNOTSUPP for ranges of more than 128 KiB, or if the peer does
        not gather for this link, ENOMEM if it has no buffer.
        """

    def write(
        self,
        descriptors: numpy.typing.NDArray[numpy.uint64] | bytes,
        local_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        Write local ranges to remote ones. OK means that they were written there.
        """

    def push(
        self,
        descriptors: numpy.typing.NDArray[numpy.uint64] | bytes,
        local_ref: tuple[int, int],
        cache_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """
        As write, but the peer's threads fetch the bytes from this process (same host).

        Without a local_ref the bytes are in the peer's landing slots, and local counts from there.
        """

    def probe(
        self,
        remote: numpy.typing.NDArray[numpy.uint64] | bytes,
        length: numpy.typing.NDArray[numpy.uint64] | bytes,
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> tuple[int, int, int, int]:
        """Make the peer check that it can read each page of remote ranges."""

    def ask_checksum(
        self,
        remote: numpy.typing.NDArray[numpy.uint64] | bytes,
        length: numpy.typing.NDArray[numpy.uint64] | bytes,
        cache_ref: tuple[int, int],
        key_ref: tuple[int, int],
        version: int,
        deadline_ns: int,
    ) -> ChecksumQuestion:
        """
        Request the CRC-32C of each remote range, which the peer's threads compute.
        """

    def consume(self, index: int, value: int, deadline_ns: int) -> tuple[int, int, int, int]:
        """Consume a key of the peer. OK for exactly one of all callers."""

    def version(self, deadline_ns: int) -> tuple[tuple[int, int, int, int], int]:
        """Return (outcome, version of the peer's directory)."""

    def read_log(
        self, offset: int, size: int, deadline_ns: int
    ) -> tuple[tuple[int, int, int, int], bytes]:
        """
        Return (outcome, bytes of the peer's directory log), clamped to the log's capacity.
        """

    def ping(self, deadline_ns: int) -> tuple[int, int, int, int]:
        """Make one round trip on a free lane."""

    def close(self) -> None:
        """
        End running operations (CANCELLED), wait for them, close the lanes. Idempotent.
        """

def look_all(links: Sequence[Lanes], prune: bool) -> tuple[bytes, list[int]]:
    """
    Look at the lanes of many links, without blocking; with `prune` free lanes that the peer has
    closed are closed. Returns (native uint64 of each link that changes with each answer and
    each request of its peer, places of links with fewer lanes than they need).
    """

def ping_all(links: Sequence[Lanes], deadline_ns: int) -> list[tuple[int, int, int, int]]:
    """
    Ping the peers of many links at once, on one free lane each. Returns outcomes, in order.
    A link whose lanes are all in use gets TIMEOUT at once.
    """

class Cancellation:
    """
    Ends blocking calls of one thread from another. cancel() and canceled are thread-safe.
    """

    def __init__(self, raised: object) -> None:
        """raised is the type of the exception that ends a call."""

    def cancel(self) -> None:
        """
        End the call that runs under it, within 100 ms where the call can end, and all later
        ones. When the call has raised, it writes nothing any more.
        """

    @property
    def canceled(self) -> bool:
        """Whether cancel() was called."""

    def enter(self) -> None:
        """Have the calls of this thread run under it."""

    def exit(self) -> None:
        """End what enter() began."""

def check_canceled() -> None:
    """Raise if the calls of this thread are canceled."""
