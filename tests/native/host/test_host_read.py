"""Reads from another process on this host, and what ends them."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from llm_datadist import _native
from support.host_reads import INSTANCE, NO_REF

pytestmark = pytest.mark.slow  # each test starts a process


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("pages_read", [1, 7, 1023, 1024, 1500, 4096])
def test_a_read_brings_every_byte(reading, pages_read):
    at = reading(pages_read)
    assert at.read() == (_native.OK, 0, -1, at.own.size)
    assert at.has_every_byte()


@pytest.mark.usefixtures("two_threads")
def test_a_mapped_segment_is_read_as_well(reading):
    at = reading(3000)
    at.host.map_segment(*at.peer.segment)
    outcome = at.read(base=at.peer.segment[1], cache_ref=at.peer.segment_entry)
    assert outcome == (_native.OK, 0, -1, at.own.size)
    assert at.has_every_byte(shift=1)
    at.write_all(0)
    at.host.unmap_range(at.peer.segment[1] + at.own.page, at.own.page)
    outcome = at.read(base=at.peer.segment[1], cache_ref=at.peer.segment_entry)
    assert outcome[0] == _native.OK
    assert at.has_every_byte(shift=1)


def test_long_and_empty_and_unaligned_descriptors(reading, tools):
    at = reading(2048)
    outcome = at.read_ranges(
        tools.u64(at.own.address, at.own.address, at.own.address + 3),
        tools.u64(at.peer.address, at.peer.address, at.peer.address + 3),
        tools.u64(3, 0, at.own.size - 3),
        at.local_ref,
        INSTANCE,
        at.peer.entry,
        NO_REF,
        tools.soon(),
    )
    assert outcome == (_native.OK, 0, -1, at.own.size)
    assert at.has_every_byte()


def test_nothing_to_read_is_ok_but_checked(reading):
    at = reading(4)
    assert at.read(count=0) == (_native.OK, 0, -1, 0)
    assert at.read(count=0, cache_ref=(at.peer.entry[0], 99))[0] == _native.GONE


def test_arrays_that_make_no_sense_are_refused(reading, tools):
    at = reading(1)
    rest = (at.local_ref, INSTANCE, at.peer.entry, NO_REF, tools.soon())
    with pytest.raises(ValueError, match="three rows of one length, got 4 words"):
        at.read_ranges(tools.u64(1, 2), tools.u64(1), tools.u64(1), *rest)
    with pytest.raises(ValueError, match="wraps"):
        at.read_ranges(tools.u64(2**64 - 1), tools.u64(1), tools.u64(2), *rest)
    with pytest.raises(ValueError, match="16 TiB"):
        at.read_ranges(tools.u64(1), tools.u64(1), tools.u64(1 << 45), *rest)


def test_guards_of_the_peer_end_a_read_before_it_writes(reading):
    at = reading(4)
    key = tuple(at.peer.ask("open_key"))
    assert at.read(key_ref=key)[0] == _native.OK
    at.write_all(7)
    assert at.peer.ask("close_key", *key)
    assert at.read(key_ref=key)[0] == _native.GONE
    value = at.peer.ask("reopen_entry", *at.peer.entry)
    assert at.read()[0] == _native.GONE
    assert (at.own.bytes == 7).all()
    assert at.read(cache_ref=(at.peer.entry[0], value))[0] == _native.OK
    assert at.peer.ask("close")
    assert at.read(cache_ref=NO_REF)[0] == _native.GONE


def test_a_local_entry_that_is_gone_is_not_written(reading):
    at = reading(4)
    assert at.node.close_entry(*at.local_ref)
    assert at.read()[0] == _native.LOCAL_GONE
    assert (at.own.bytes == 0).all()


def test_the_deadline_ends_a_read(reading):
    at = reading(4)
    assert at.read(deadline_ns=time.monotonic_ns())[0] == _native.TIMEOUT


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("bad", [0, 3, 1022, 1023, 1999])
def test_unreadable_memory_of_the_peer_is_named(reading, bad):
    at = reading(2000)
    at.peer.ask("unmap", bad, 1)
    code, _, index, _ = at.read()
    assert (code, index) == (_native.REMOTE_FAULT, bad)
    if bad > 0:
        assert at.read(count=bad)[0] == _native.OK


def test_protected_memory_of_the_peer_is_contained_and_can_be_repaired(reading):
    at = reading(8)
    at.peer.ask("protect", 5, 1, 0)
    code, _, index, _ = at.read()
    assert (code, index) == (_native.REMOTE_FAULT, 5)
    at.peer.ask("protect", 5, 1, 3)
    assert at.read()[0] == _native.OK


@pytest.mark.parametrize("absent", [0, 5, 7])
def test_absent_pages_of_the_peer_are_not_read(reading, absent):
    """Nobody can tell when they come, nor take the call back: their owner brings them in first."""
    at = reading(8)
    at.write_all(7)
    at.peer.ask("forget", absent, 1)
    assert at.read()[:2] == (_native.SYSTEM, errno.EAGAIN)
    assert (at.own.bytes == 7).all()


def test_a_fault_in_the_middle_of_a_descriptor_is_found(reading, tools):
    at = reading(8)
    at.peer.ask("unmap", 6, 1)
    outcome = at.read_ranges(
        tools.u64(at.own.address),
        tools.u64(at.peer.address + 9),
        tools.u64(at.own.size - 9),
        at.local_ref,
        INSTANCE,
        at.peer.entry,
        NO_REF,
        tools.soon(),
    )
    assert (outcome[0], outcome[2]) == (_native.REMOTE_FAULT, 0)


@pytest.mark.parametrize("rest", [1, 2, 4095])
@pytest.mark.parametrize("side", ["peer", "own"])
def test_a_rest_of_any_size_is_missed(reading, tools, rest, side):
    """The system call stops at the page that cannot be accessed, and has moved all but the rest."""
    at = reading(3)
    if side == "peer":
        at.peer.ask("protect", 2, 1, tools.PROT_NONE)
    else:
        at.own.protect(2, tools.PROT_NONE)
    outcome = at.read_ranges(
        tools.u64(at.own.address, at.own.at(1)),
        tools.u64(at.peer.address, at.peer.address + at.own.page),
        tools.u64(at.own.page, at.own.page + rest),
        at.local_ref,
        INSTANCE,
        at.peer.entry,
        NO_REF,
        tools.soon(),
    )
    expected = _native.REMOTE_FAULT if side == "peer" else _native.LOCAL_FAULT
    assert (outcome[0], outcome[2]) == (expected, 1)


@pytest.mark.parametrize("protected", ["nothing", "own memory", "the peer's memory"])
def test_bytes_and_faults_of_another_process_under_the_pid_are_not_the_peers(reading, protected):
    """It shows no proof of the link, or another one."""
    at = reading(4)
    assert at.read()[0] == _native.OK
    at.peer.ask("show_proof", list(range(16)))
    if protected == "own memory":
        at.own.protect(2, at.tools.PROT_READ)
    elif protected == "the peer's memory":
        at.peer.ask("protect", 2, 1, at.tools.PROT_NONE)
    assert at.read()[0] == _native.PEER_DEAD
    at.peer.ask("show_proof", at.peer.proof)
    assert at.read(count=2)[0] == _native.OK


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("protection", [None, "PROT_NONE", "PROT_READ"])
def test_unwritable_own_memory_is_named(reading, mapped, protection):
    at = reading(8)
    if mapped:
        at.host.map_segment(*at.peer.segment)
    if protection is None:
        at.own.unmap(3)
    else:
        at.own.protect(3, getattr(at.tools, protection))
    base = at.peer.segment[1] if mapped else at.peer.address
    code, _, index, _ = at.read(base=base)
    assert (code, index) == (_native.LOCAL_FAULT, 3)
    assert at.read(first=4, base=base)[0] == _native.OK


@pytest.mark.parametrize("mapped", [False, True])
def test_a_killed_peer_is_dead(reading, mapped):
    at = reading(8)
    if mapped:
        at.host.map_segment(*at.peer.segment)
    at.peer.process.kill()
    at.peer.process.wait()
    base = at.peer.segment[1] if mapped else at.peer.address
    assert at.read(base=base)[0] == _native.PEER_DEAD
    at.peer.close()


def test_another_process_is_not_taken_for_the_peer(node, peer_process):
    peer = peer_process(1)
    address = (peer.process.pid, peer.incarnation, peer.page_address)
    file = (peer.published_fd, peer.published_bytes)
    link = (peer.link[0], bytes(peer.proof))
    with pytest.raises(OSError, match="another instance"):
        _native.HostPeer(node, address[0], peer.incarnation + 1, address[2], *file, *link)
    with pytest.raises(OSError, match="not have the page mapped as its owner"):
        _native.HostPeer(node, address[0], address[1], peer.address, *file, *link)
    with pytest.raises(OSError, match="not have the page mapped as its owner"):
        _native.HostPeer(node, address[0], address[1], 2**64 - 4096, *file, *link)  # it would wrap
    with pytest.raises(OSError, match="smaller than announced"):
        _native.HostPeer(node, *address, file[0], file[1] + 1, *link)
    with pytest.raises(OSError, match="no sealed memory"):
        _native.HostPeer(node, *address, 0, 64, *link)
    with pytest.raises(FileNotFoundError, match="cannot open"):
        _native.HostPeer(node, *address, 999, 64, *link)


def test_a_page_counts_only_with_the_proof_of_the_link(node, peer_process):
    peer = peer_process(1)
    address = (peer.process.pid, peer.incarnation, peer.page_address)
    file = (peer.published_fd, peer.published_bytes)
    proof = bytes(peer.proof)
    for index, shown in ((peer.link[0], bytes(16)), (peer.link[0] + 1, proof), (0, proof)):
        with pytest.raises(OSError, match="does not show the proof of this link"):
            _native.HostPeer(node, *address, *file, index, shown)
    with pytest.raises(OSError, match="has no such link"):
        _native.HostPeer(node, *address, *file, 1 << 40, proof)
    with pytest.raises(ValueError, match="16 bytes"):
        _native.HostPeer(node, *address, *file, peer.link[0], b"short")
    _native.HostPeer(node, *address, *file, peer.link[0], proof).close()


def test_a_page_shows_the_proof_of_a_link_no_longer_than_it_lasts(node, peer_process):
    peer = peer_process(1)
    peer.seen_from(node).close()
    assert peer.ask("close_guard", *peer.link)
    with pytest.raises(OSError, match="does not show the proof of this link"):
        peer.seen_from(node)


def test_who_only_reads_a_page_does_not_pass_for_its_owner(node, peer_process):
    """A hostile owner could name this process, which has its page mapped to read it."""
    peer = peer_process(1)
    reader = peer.seen_from(node)  # maps the page
    try:
        maps = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
        [mapped] = [line for line in maps if "llm_datadist-directory" in line and " r--s " in line]
        begin = int(mapped.split("-")[0], 16)
        fd = os.open(f"/proc/{peer.process.pid}/fd/{peer.published_fd}", os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="not have the page mapped as its owner"):
                _native.HostPeer(
                    node,
                    os.getpid(),
                    peer.incarnation,
                    begin,
                    fd,
                    peer.published_bytes,
                    peer.link[0],
                    bytes(peer.proof),
                )
        finally:
            os.close(fd)
    finally:
        reader.close()


def test_a_segment_must_be_where_the_peer_says(reading):
    at = reading(4)
    fd, address, size = at.peer.segment
    with pytest.raises(OSError, match="not mapped where"):
        at.host.map_segment(fd, at.peer.address, size)
    with pytest.raises(OSError, match="smaller than announced"):
        at.host.map_segment(fd, address, size * 2)


def test_a_segment_whose_guard_is_dead_is_not_used(reading):
    at = reading(4)
    guard = tuple(at.peer.ask("open_key"))
    at.host.map_segment(*at.peer.segment, guard)
    at.peer.ask("protect_segment", 2, 1, at.tools.PROT_NONE)
    refs = {"base": at.peer.segment[1], "cache_ref": at.peer.segment_entry}
    assert at.read(**refs)[0] == _native.OK, "the mapping of this process is another one"
    at.peer.ask("close_key", *guard)
    code, _, index, _ = at.read(**refs)
    assert (code, index) == (_native.REMOTE_FAULT, 2), "the read went to the process"


def test_a_part_of_a_mapping_that_was_dropped_is_not_read(reading):
    at = reading(4)
    at.host.map_segment(*at.peer.segment)
    at.peer.ask("protect_segment", 2, 1, at.tools.PROT_NONE)
    refs = {"base": at.peer.segment[1], "cache_ref": at.peer.segment_entry}
    assert at.read(**refs)[0] == _native.OK
    at.host.unmap_range(at.peer.segment[1] + 2 * at.own.page, 1)
    code, _, index, _ = at.read(**refs)
    assert (code, index) == (_native.REMOTE_FAULT, 2)
    assert at.read(first=3, **refs)[0] == _native.OK


def test_the_directory_of_the_peer_is_visible(reading):
    at = reading(1)
    version = at.peer.ask("append", [1, 2, 3])
    assert at.host.version() == version == 3
    assert at.host.read_log(0, 3) == b"\1\2\3"
    assert at.host.guard(at.peer.entry[0]) == at.peer.entry[1]
    assert at.host.guard(10**9) == 0


def test_closing_ends_further_reads_and_keeps_the_view(reading):
    at = reading(2)
    at.host.close()
    at.host.close()
    assert at.read()[0] == _native.CANCELLED
    assert at.host.version() == 0


def test_closing_the_own_node_ends_reads(reading):
    at = reading(2)
    at.node.close()
    assert at.read()[0] == _native.CLOSED


def test_the_node_outlives_its_name(peer_process, pages, tools):
    own = pages(1)
    host = peer_process(1).seen_from(_native.Node(3, 16, 64))
    assert host.version() == 0
    assert own.bytes[0] == 0
    host.close()


@pytest.mark.usefixtures("two_threads")
def test_many_threads_read_at_once(reading):
    at = reading(512)
    codes = []

    def work():
        for _ in range(20):
            codes.append(at.read()[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [_native.OK] * 80
    assert at.has_every_byte()


def test_a_forked_child_cannot_use_the_parents_peer(reading):
    at = reading(600)
    assert at.read()[0] == _native.OK
    child = os.fork()
    if child == 0:
        code = at.read()[0]
        at.host.close()
        os._exit(42 if code == _native.CLOSED else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert at.read()[0] == _native.OK


def test_a_window_refuses_what_lies_outside(reading):
    """Whether by memory or by a mapped segment; the descriptor at fault is named."""
    r = reading()
    page = r.own.page
    r.host.restrict_to(r.peer.address + page, 2 * page)
    r.write_all(255)
    assert r.read(1, 2)[0] == _native.OK
    assert r.read(0, 1)[::2] == (_native.DENIED, 0)
    assert r.read(1, 3)[::2] == (_native.DENIED, 2)
    assert r.read(0, 1, base=r.peer.segment[1])[0] == _native.DENIED
    assert (r.own.bytes[:page] == 255).all()
    for address, size in ((0, 0), (2**64 - page, 2 * page)):
        with pytest.raises(ValueError, match="window"):
            r.host.restrict_to(address, size)
