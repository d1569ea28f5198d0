"""The cases, each a function that adds its figures to a `Report`."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import statistics
import threading
import time

import numpy as np

from gpu.memory import copied
from gpu.owner import instance, link, own, pattern, register
from llm_datadist import BlocksCacheKey, LLMException

KEY = BlocksCacheKey(1, 0)
KIB, MIB, GB = 1 << 10, 1 << 20, 10**9


def rate(size, call, rounds):
    """Return the best of some rounds in GB/s; the first call is not counted."""
    call()
    return size / min(_seconds(call) for _ in range(rounds)) / GB


def _seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def shuffled(count):
    return [int(at) for at in np.random.default_rng(7).permutation(count)]


@contextlib.contextmanager
def peers(gpu, backend, size, block_bytes, *, remote="gpu", local="gpu"):
    """Give (manager, local cache, local address) of an instance that is linked to an owner."""
    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    process = spawn.Process(
        target=own,
        args=(other, backend, size, block_bytes),
        kwargs={"on_gpu": remote == "gpu"},
        daemon=True,
    )
    process.start()
    other.close()
    made = instance(2, backend)
    kept = np.zeros(size // 8, np.uint64) if local == "host" else None
    address = gpu.allocate(size) if kept is None else kept.ctypes.data
    try:
        link(made, pipe.recv())
        cache = register(made, address, size, block_bytes, on_gpu=local == "gpu")
        yield made, cache, address
    finally:
        made.finalize()
        pipe.close()
        process.join(30)
        if process.is_alive():
            process.kill()
        if kept is None:
            gpu.free(address)


def blocks_between_gpus(gpu, report, size, rounds):
    """Pull and push of 32 KiB blocks in random order, and one block."""
    block = 32 * KIB
    count = size // block
    every, order = list(range(count)), shuffled(count)
    device_rate = _device_rate(gpu, size, rounds)
    report.add("one copy within the GPU", device_rate, "GB/s")
    with peers(gpu, "host", size, block) as (made, cache, address):
        manager = made.cache_manager

        def pull():
            manager.pull_blocks(KEY, cache, every, order)

        def push():
            manager.push_blocks(KEY, cache, order, every)

        goal = 0.6 * device_rate / 2
        report.add("pull 32 KiB blocks", rate(size, pull, rounds), "GB/s", goal)
        landed = gpu.read(address, size).reshape(count, -1)
        report.check("pull", (landed[order] == pattern(size).reshape(count, -1)).all())
        report.add("push 32 KiB blocks", rate(size, push, rounds), "GB/s", goal)
        pull()
        landed = gpu.read(address, size).reshape(count, -1)
        report.check("push", (landed[order] == pattern(size).reshape(count, -1)).all())
        report.note_path("pull and push 32 KiB blocks", made.describe_link(1))
        times = sorted(
            _seconds(lambda: manager.pull_blocks(KEY, cache, [3], [5])) for _ in range(50 * rounds)
        )
        report.add("pull one 32 KiB block, p50", statistics.median(times) * 1e6, "us", 40)


def _device_rate(gpu, size, rounds):
    one, other = gpu.allocate(size), gpu.allocate(size)
    found = rate(size, lambda: copied(one, other, size), rounds)
    gpu.free(one)
    gpu.free(other)
    return found


def swaps(gpu, report, size, rounds):
    """swap_blocks of 64 KiB blocks between GPU and pinned host memory, each direction."""
    block = 64 * KIB
    pairs = dict(zip(range(size // block), shuffled(size // block), strict=True))
    made, on_gpu, pinned = instance(3, "host"), gpu.allocate(size), gpu.pinned(size)
    try:
        there = register(made, on_gpu, size, block)
        host = register(made, pinned, size, block, on_gpu=False)
        swap = made.cache_manager.swap_blocks
        for name, to, source, addresses in (
            ("GPU to host", host, there, (pinned, on_gpu)),
            ("host to GPU", there, host, (on_gpu, pinned)),
        ):
            one = rate(size, lambda: copied(*addresses, size), rounds)  # noqa: B023 - called at once
            report.add(f"one copy, pinned, {name}", one, "GB/s")
            found = rate(size, lambda: swap(source, to, pairs), rounds)  # noqa: B023
            report.add(f"swap_blocks of 64 KiB blocks, pinned, {name}", found, "GB/s", 0.85 * one)
        gpu.write(on_gpu, pattern(size))
        swap(there, host, pairs)
        gpu.write(on_gpu, np.zeros(size // 8, np.uint64))
        swap(host, there, {to: source for source, to in pairs.items()})
        report.check("swap_blocks", (gpu.read(on_gpu, size) == pattern(size)).all())
    finally:
        made.finalize()
        gpu.free(on_gpu)
        gpu.free_pinned(pinned)


def lanes(gpu, report, size, rounds):
    """Lanes with memory of GPUs, and of hosts, at both ends."""
    block = 32 * KIB
    every, order = list(range(size // block)), shuffled(size // block)
    found = {}
    try:
        instance(4, "tcp").finalize()
    except LLMException as error:
        report.leave_out("lanes, GPU memory at both ends", str(error))
        return
    for kind in ("host", "gpu"):
        with peers(gpu, "tcp", size, block, remote=kind, local=kind) as (made, cache, address):
            pull = made.cache_manager.pull_blocks
            found[kind] = rate(size, lambda: pull(KEY, cache, every, order), rounds)  # noqa: B023
            if kind == "gpu":
                landed = gpu.read(address, size).reshape(len(every), -1)
                right = landed[order] == pattern(size).reshape(len(every), -1)
                report.check("lanes", right.all())
                report.note_path("lanes", made.describe_link(1))
    report.add("lanes, host memory at both ends", found["host"], "GB/s")
    report.add("lanes, GPU memory at both ends", found["gpu"], "GB/s", 0.85 * found["host"])


def host_from_gpu(gpu, report, size, rounds):
    """A cache in pageable host memory pulls from one in GPU memory of this host."""
    block = 32 * KIB
    every = list(range(size // block))
    on_gpu, data = gpu.allocate(size), np.zeros(size // 8, np.uint64)
    one = rate(size, lambda: copied(data.ctypes.data, on_gpu, size), rounds)
    gpu.free(on_gpu)
    report.add("one copy, GPU to pageable host memory", one, "GB/s")
    with peers(gpu, "host", size, block, local="host") as (made, cache, address):
        pull = made.cache_manager.pull_blocks
        found = rate(size, lambda: pull(KEY, cache, every, every), rounds)
        landed = np.frombuffer(ctypes.string_at(address, size), np.uint64)
        report.check("host cache pulls", (landed == pattern(size)).all())
        report.note_path("host cache pulls from a GPU cache", made.describe_link(1))
    report.add("host cache pulls from a GPU cache", found, "GB/s", 0.8 * one)


def beside_a_model(gpu, report, size, rounds):
    """How much slower matrix products get while 50 GB/s are pulled."""
    try:
        import torch  # noqa: PLC0415 - optional
    except ImportError:
        report.leave_out("a model's stream while 50 GB/s are pulled", "torch is not installed")
        return
    if not torch.cuda.is_available():
        report.leave_out("a model's stream while 50 GB/s are pulled", "torch sees no GPU")
        return
    block, matrix = 32 * KIB, torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    every = list(range(size // block))

    def multiply():
        for _ in range(50):
            matrix @ matrix
        torch.cuda.synchronize()

    multiply()
    alone = min(_seconds(multiply) for _ in range(rounds))
    with peers(gpu, "host", size, block) as (made, cache, _):
        ended = threading.Event()
        puller = threading.Thread(target=_pull_steadily, args=(made, cache, every, size, ended))
        puller.start()
        busy = min(_seconds(multiply) for _ in range(rounds))
        ended.set()
        puller.join()
    slower = (busy / alone - 1) * 100
    report.add("a model's stream while 50 GB/s are pulled", slower, "% slower", 10)


def _pull_steadily(made, cache, every, size, ended):
    while not ended.is_set():
        begin = time.perf_counter()
        made.cache_manager.pull_blocks(KEY, cache, every, every)
        time.sleep(max(0.0, size / (50 * GB) - (time.perf_counter() - begin)))
