"""Guards, entries, the published directory."""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time

import pytest

from llm_datadist import _native


def test_a_guard_is_live_until_closed_and_its_slot_never_shows_the_same_value_again(node):
    index, value = node.open_guard()
    assert value % 2 == 1
    assert node.guard(index) == value
    for other in (value - 1, value + 1, value + 2):
        assert not node.close_guard(index, other)
        assert node.guard(index) == value
    assert node.close_guard(index, value)
    assert node.guard(index) == value + 1
    assert not node.close_guard(index, value)
    assert node.open_guard() == (index, value + 2)


def test_guard_zero_dies_with_the_node(node):
    assert node.guard(0) == 1
    node.close()
    node.close()
    assert node.guard(0) == 2


def test_a_guard_outside_the_page_is_dead(node):
    assert node.guard(1024) == 0
    assert node.guard(2**64 - 1) == 0


def test_guards_run_out_with_an_error():
    small = _native.Node(5, 4, 64)
    refs = [small.open_guard() for _ in range(3)]
    with pytest.raises(ValueError, match="all guards"):
        small.open_guard()
    small.close_guard(*refs[0])
    small.open_guard()


def test_entries_close_once_and_only_at_their_value(node, tools):
    index, value = node.open_entry(tools.u64(0x1000), tools.u64(0x1000), True)
    assert not node.close_entry(index, value + 2)
    assert not node.close_guard(index, value), "an entry is no key"
    assert node.close_entry(index, value)
    assert not node.close_entry(index, value)
    assert node.reopen_entry(index, value) == 0


def test_a_suspended_entry_is_not_live_until_it_is_resumed(node, tools):
    index, value = node.open_entry(tools.u64(0x1000), tools.u64(0x1000), True)
    assert not node.suspend_entry(index, value + 2)
    assert node.suspend_entry(index, value)
    assert node.guard(index) == value + 1
    assert not node.suspend_entry(index, value)
    assert node.reopen_entry(index, value) == 0
    assert node.resume_entry(index) == value + 2
    assert node.close_entry(index, value + 2)


def test_reopening_gives_the_same_entry_a_new_value(node, tools):
    index, value = node.open_entry(tools.u64(0x1000), tools.u64(0x1000), True)
    assert node.reopen_entry(index, value) == value + 2
    assert node.guard(index) == value + 2
    assert not node.close_entry(index, value)
    assert node.close_entry(index, value + 2)


def test_ranges_must_not_wrap_and_arrays_must_match(node, tools):
    with pytest.raises(ValueError, match="wraps"):
        node.open_entry(tools.u64(2**64 - 10), tools.u64(100), True)
    with pytest.raises(ValueError, match="differ in length"):
        node.open_entry(tools.u64(1, 2), tools.u64(100), True)


def test_only_arrays_of_uint64_are_taken(node, tools):
    for wrong in ([1], tools.u64(1).astype("int64"), tools.u64(1, 2, 3)[::2], tools.u64(1)[None]):
        with pytest.raises(TypeError):
            node.open_entry(wrong, wrong, True)


def test_the_log_grows_by_records_and_a_rewrite_starts_an_era(node):
    assert node.version() == 0
    node.append(b"one")
    node.append(b"second")
    assert node.version() == 9
    assert node.read_log(3, 100).startswith(b"second\0")
    node.rewrite(b"new")
    assert node.version() == (2 << 40) | 3
    assert node.read_log(0, 3) == b"new"
    with pytest.raises(ValueError, match="full"):
        node.append(bytes(1 << 16))
    assert node.version() == (2 << 40) | 3
    with pytest.raises(ValueError, match="fit"):
        node.rewrite(bytes((1 << 16) + 1))


def test_the_version_is_odd_while_the_log_is_rewritten():
    """So that a reader never takes a mixture of two logs for either."""
    node = _native.Node(1, 16, 64 << 20)
    records, stop = bytes(60 << 20), threading.Event()

    def rewrite():
        while not stop.is_set():
            node.rewrite(records)

    writer = threading.Thread(target=rewrite)
    writer.start()
    deadline = time.monotonic() + 20
    try:
        while not node.version() >> 40 & 1:
            assert time.monotonic() < deadline
    finally:
        stop.set()
        writer.join()
        node.close()
    assert node.version() & ((1 << 40) - 1) == len(records)
    assert node.version() >> 40 & 1 == 0


def test_reading_the_log_is_clamped_to_it(node):
    node.append(b"x")
    assert len(node.read_log(0, 2**64 - 1)) == 1 << 16
    assert node.read_log(2**64 - 1, 5) == b""


def test_nothing_is_consumed_until_a_peer_consumes(node):
    node.open_guard()
    assert node.consumed() == []
    assert not select.select([node.consumed_fd], [], [], 0)[0]


def test_the_published_file_cannot_be_shrunk(node):
    with pytest.raises(PermissionError):
        os.ftruncate(node.published_fd, 0)


def test_a_forked_child_does_not_touch_the_parents_guards(node, tools):
    ref = node.open_entry(tools.u64(0x1000), tools.u64(0x1000), True)
    key = node.open_guard()
    child = os.fork()
    if child == 0:
        held = node.close_entry(*ref) or node.close_guard(*key) or node.reopen_entry(*ref) != 0
        node.close()
        try:
            node.append(b"no")
        except RuntimeError:
            os._exit(1 if held else 42)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert node.guard(0) == 1
    assert node.guard(ref[0]) == ref[1]
    assert node.guard(key[0]) == key[1]
    assert node.version() == 0


def test_a_segment_is_sealed_memory():
    segment = _native.Segment(1 << 20, "test")
    assert segment.size == 1 << 20
    assert segment.address % 4096 == 0
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 4096)
    segment.close_file()
    assert segment.fd == -1
    ctypes.memset(segment.address, 7, segment.size)
    segment.close()
    segment.close()
    assert segment.size == 0


def test_a_segment_that_cannot_be_had_is_an_os_error():
    with pytest.raises(OSError, match=r"Cannot allocate|too large|Invalid"):
        _native.Segment(1 << 62, "too-large")
