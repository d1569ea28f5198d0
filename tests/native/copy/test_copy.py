"""Copies inside one process, and the threads that make them."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llm_datadist import _native

NO_REF = (0, 0)
FREE = (None, NO_REF, NO_REF)


def blocks(address, size, order):
    return np.asarray(order, dtype=np.uint64) * np.uint64(size) + np.uint64(address)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("block_bytes", [1, 63, 2048, 4096, 4099, 65536, 1 << 20])
@pytest.mark.parametrize("total_bytes", [1 << 16, 3 << 20, 17 << 20])
def test_every_block_arrives(tools, block_bytes, total_bytes):
    count = min(max(1, total_bytes // block_bytes), 5000)
    rng = np.random.default_rng(block_bytes)
    source = rng.integers(0, 256, count * block_bytes + 7, dtype=np.uint8)
    target = np.zeros_like(source)
    order = rng.permutation(count)
    outcome = _native.copy(
        blocks(target.ctypes.data + 5, block_bytes, np.arange(count)),
        blocks(source.ctypes.data + 2, block_bytes, order),
        np.full(count, block_bytes, dtype=np.uint64),
        *FREE,
        tools.soon(),
    )
    assert outcome == (_native.OK, 0, -1, count * block_bytes)
    wanted = source[2 : 2 + count * block_bytes].reshape(count, block_bytes)[order].ravel()
    assert np.array_equal(target[5 : 5 + len(wanted)], wanted)
    assert not target[:5].any()
    assert not target[5 + len(wanted) :].any()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("count", [4, 3000])
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("harm", ["unmap", "protect"])
def test_a_fault_names_side_and_pair(pages, tools, count, side, harm):
    memory = {"source": pages(count), "target": pages(count)}
    bad = count - 2
    if harm == "unmap":
        memory[side].unmap(bad)
    else:
        memory[side].protect(bad, tools.PROT_NONE)
    page = memory["source"].page
    every = np.arange(count)
    code, _, index, _ = _native.copy(
        blocks(memory["target"].address, page, every),
        blocks(memory["source"].address, page, every),
        np.full(count, page, dtype=np.uint64),
        *FREE,
        tools.soon(),
    )
    wanted = _native.REMOTE_FAULT if side == "source" else _native.LOCAL_FAULT
    assert (code, index) == (wanted, bad)


def test_addresses_that_no_process_has_are_faults_too(pages, tools):
    own = pages(1).address
    for bad in (0, 8, 1 << 47, 1 << 60, 2**64 - 4096):
        outcome = _native.copy(tools.u64(own), tools.u64(bad), tools.u64(64), *FREE, tools.soon())
        assert outcome[0] == _native.REMOTE_FAULT
        outcome = _native.copy(tools.u64(bad), tools.u64(own), tools.u64(64), *FREE, tools.soon())
        assert outcome[0] == _native.LOCAL_FAULT


def test_memory_of_an_accelerator_needs_its_driver(node, pages, tools):
    """It is never touched by a thread of the host."""
    source, target = pages(1), pages(1)
    on_device = node.open_entry(tools.u64(target.address), tools.u64(target.size), False, 0)
    places = tools.u64(target.address), tools.u64(source.address), tools.u64(source.size)
    for refs in ((on_device, (0, 0)), ((0, 0), on_device)):
        outcome = _native.copy(*places, node, *refs, tools.soon())
        assert outcome[:2] == (_native.SYSTEM, errno.ENODEV)


def test_entries_and_deadline_are_checked(node, pages, tools):
    source, target = pages(1), pages(1)
    refs = [
        node.open_entry(tools.u64(each.address), tools.u64(each.size), False)
        for each in (target, source)
    ]

    def copy(deadline_ns=None):
        return _native.copy(
            tools.u64(target.address),
            tools.u64(source.address),
            tools.u64(source.size),
            node,
            *refs,
            tools.soon() if deadline_ns is None else deadline_ns,
        )[0]

    assert copy() == _native.OK
    assert copy(time.monotonic_ns()) == _native.TIMEOUT
    refs[1] = (refs[1][0], node.reopen_entry(*refs[1]))
    assert copy() == _native.OK
    node.close_entry(*refs[1])
    assert copy() == _native.GONE
    node.close_entry(*refs[0])
    assert copy() == _native.LOCAL_GONE
    node.close()
    assert copy() == _native.CLOSED


def test_a_child_copies_with_threads_of_its_own(tools):
    def copies():
        source = np.arange(4 << 20, dtype=np.uint8)
        target = np.zeros_like(source)
        outcome = _native.copy(
            tools.u64(target.ctypes.data),
            tools.u64(source.ctypes.data),
            tools.u64(source.size),
            *FREE,
            tools.soon(),
        )
        return outcome[0] == _native.OK and np.array_equal(source, target)

    assert copies()
    child = os.fork()
    if child == 0:
        os._exit(42 if copies() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert copies()


def copy_threads():
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            names.append((task / "comm").read_text(encoding="ascii").strip())
    return names.count("ldd-copy")


def test_the_number_of_threads_can_change_while_they_work(tools):
    source = np.arange(8 << 20, dtype=np.uint8)
    stop = threading.Event()
    failures = []

    def work():
        target = np.zeros_like(source)
        while not stop.is_set():
            target[:] = 0
            outcome = _native.copy(
                tools.u64(target.ctypes.data),
                tools.u64(source.ctypes.data),
                tools.u64(source.size),
                *FREE,
                tools.soon(),
            )
            if outcome[0] != _native.OK or not np.array_equal(source, target):
                failures.append(outcome)

    before = _native.threads()
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for count in (1, 3, 2, 4, 1, 2) * 5:
        _native.set_threads(count)
        assert _native.threads() == count
    stop.set()
    for worker in workers:
        worker.join()
    assert failures == []
    _native.set_threads(1)
    deadline = time.monotonic() + 5
    while copy_threads() != 0:  # a joined thread shows in /proc for a moment more
        assert time.monotonic() < deadline
    _native.set_threads(0)
    assert _native.threads() == before


FAULTS = """
import ctypes, faulthandler, os, signal, sys, time
import numpy as np
from llm_datadist import _native
own = np.zeros(4096, dtype=np.uint8)
def copy_badly(source):
    made = lambda value: np.array([value], dtype=np.uint64)
    return _native.copy(made(own.ctypes.data), made(source), made(64), None, (0, 0), (0, 0),
                        time.monotonic_ns() + 10**10)[0]
def survive():
    for source in (4096, 1 << 60):
        assert copy_badly(source) == _native.REMOTE_FAULT
"""


def run_faults(program):
    return subprocess.run(
        [sys.executable, "-c", FAULTS + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "program",
    [
        "survive()",
        "faulthandler.enable(); survive()",
        "survive(); faulthandler.enable(); survive()",
        "faulthandler.enable(); survive(); faulthandler.disable(); survive()",
        "for _ in range(20): faulthandler.enable(); survive(); faulthandler.disable(); survive()",
        "survive(); signal.signal(signal.SIGSEGV, lambda *_: print('handler')); survive()",
    ],
)
def test_a_fault_in_a_copy_is_survived_in_silence(program):
    done = run_faults(program)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize(
    ("program", "reports"),
    [
        ("survive(); ctypes.string_at(8)", 0),
        ("faulthandler.enable(); survive(); ctypes.string_at(8)", 1),
        ("survive(); faulthandler.enable(); ctypes.string_at(8)", 1),
        ("survive(); faulthandler.enable(); survive(); ctypes.string_at(8)", 1),
        ("survive(); os.kill(os.getpid(), signal.SIGSEGV)", 0),
        ("faulthandler.enable(); survive(); os.kill(os.getpid(), signal.SIGSEGV)", 1),
        ("faulthandler.enable(); survive(); faulthandler.disable(); ctypes.string_at(8)", 0),
    ],
)
def test_a_fault_elsewhere_still_ends_the_process_once_reported(program, reports):
    done = run_faults(program)
    assert done.returncode == -11
    assert done.stderr.count("Fatal Python error: Segmentation fault") == reports


def test_python_handlers_still_get_signals_that_were_sent():
    done = run_faults(
        "signal.signal(signal.SIGBUS, lambda *_: print('handler')); survive(); "
        "os.kill(os.getpid(), signal.SIGBUS); time.sleep(0)"
    )
    assert (done.returncode, done.stdout) == (0, "handler\n")


def test_a_probe_says_which_ranges_can_be_read(tools):
    """Pages are looked at, not bytes; what is not mapped is no fault of the process."""
    memory = np.ones(4 * 4096, np.uint8)
    addresses = np.array([memory.ctypes.data, 4096, memory.ctypes.data + 5], np.uint64)
    lengths = np.array([memory.size, 1, 4096], np.uint64)
    assert _native.probe(addresses, lengths, tools.soon()) == b"\x01\x00\x01"
    assert _native.probe(addresses, lengths, 0) == b""
    with pytest.raises(ValueError, match="wrap"):
        _native.probe(np.array([2**64 - 8], np.uint64), np.array([16], np.uint64), tools.soon())
    with pytest.raises(ValueError, match="length"):
        _native.probe(addresses, lengths[:1], tools.soon())
