"""Bare NIXL on the same blocks, if its wheel is installed."""

from __future__ import annotations

import multiprocessing

import numpy as np

from gpu.cases import KIB, rate, shuffled
from gpu.memory import Gpu
from llm_datadist.cli.bench.rival_nixl import PACKAGE, make_agent

NAMES = ("NIXL reads 32 KiB blocks", "NIXL writes 32 KiB blocks")


def _own(pipe, size):
    gpu = Gpu()
    agent, address = make_agent("owner"), gpu.allocate(size)
    agent.register_memory([(address, size, 0, "")], "VRAM")
    pipe.send((agent.get_agent_metadata(), address))
    pipe.recv()


def blocks(gpu, report, size, rounds):
    """The same pull and push as the library's, between two processes."""
    if PACKAGE is None or gpu.is_stand_in:
        why = "no NIXL is installed" if PACKAGE is None else "NIXL does not know the stand-in"
        for name in NAMES:
            report.leave_out(name, why)
        return
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    process = spawn.Process(target=_own, args=(other, size), daemon=True)
    process.start()
    metadata, remote = pipe.recv()
    agent, address = make_agent("local"), gpu.allocate(size)
    agent.register_memory([(address, size, 0, "")], "VRAM")
    name, block = agent.add_remote_agent(metadata), 32 * KIB
    count = size // block
    sides = _rows(agent, address, shuffled(count), block), _rows(agent, remote, range(count), block)
    for title, operation in zip(NAMES, ("READ", "WRITE"), strict=True):
        report.add(title, rate(size, lambda: _move(agent, operation, sides, name), rounds), "GB/s")  # noqa: B023
    pipe.send(None)
    process.join(30)
    gpu.free(address)


def _rows(agent, address, order, block):
    rows = np.zeros((len(order), 3), np.uint64)
    rows[:, 0] = np.uint64(address) + np.array(order, np.uint64) * np.uint64(block)
    rows[:, 1] = block
    return agent.get_xfer_descs(rows, "VRAM")


def _move(agent, operation, sides, name):
    handle = agent.initialize_xfer(operation, *sides, name, b"")
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    agent.release_xfer_handle(handle)
    if state != "DONE":
        raise RuntimeError(f"NIXL: {state}")
