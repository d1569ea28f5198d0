"""Three prefill and two decode processes, each an asyncio program, serve 40 requests.

    python examples/asyncio_pools.py [--torch]

Each prefill process computes the KV cache of a request (the example fills it with random numbers of
a seed that is the request's number); a decode process pulls its blocks and compares every byte. The
lines of the transfer are marked with `# transfer`; the rest is scheduling.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

from llm_datadist import aio

LAYERS, BLOCKS, BLOCK_WORDS = 4, 64, 2048
PREFILLS = [f"prefill-{number}" for number in range(3)]
DECODES = [f"decode-{number}" for number in range(2)]


class PagedCache:
    """Keys and values of all layers, `[blocks, words]` each, and the blocks that are free."""

    def __init__(self, with_torch):
        shape = (BLOCKS, BLOCK_WORDS)
        if with_torch:
            import torch  # noqa: PLC0415 - an option

            self.tensors = [torch.zeros(shape, dtype=torch.float32) for _ in range(2 * LAYERS)]
        else:
            self.tensors = [np.zeros(shape, np.float32) for _ in range(2 * LAYERS)]
        self.arrays = [np.asarray(tensor) for tensor in self.tensors]  # the same memory
        self.turn = asyncio.Lock()
        self.free = asyncio.Queue()
        for block in range(BLOCKS):
            self.free.put_nowait(block)

    async def allocate(self, count):
        async with self.turn:  # requests that each wait for the rest would wait forever
            return [await self.free.get() for _ in range(count)]

    def release(self, blocks):
        for block in blocks:
            self.free.put_nowait(block)


def computed(request):
    """Return the KV cache of a request, `[tensors, its blocks, words]`."""
    shape = (2 * LAYERS, 2 + request % 7, BLOCK_WORDS)
    return np.random.default_rng(request).random(shape, np.float32)


async def prefill(name, directory, inbox, outboxes, with_torch):
    cache = PagedCache(with_torch)
    async with aio.Node(name, "127.0.0.1:0", directory=directory) as node:  # transfer
        node.register("kv", cache.tensors)  # transfer

        async def compute(request):
            result = computed(request)
            blocks = await cache.allocate(result.shape[1])
            for array, values in zip(cache.arrays, result, strict=True):
                array[blocks] = values
            outboxes[request % len(outboxes)].put((name, request, blocks))

        computing = set()
        while (message := await asyncio.to_thread(inbox.get)) is not None:
            kind, request, blocks = message
            if kind == "pulled":
                cache.release(blocks)
            else:
                computing.add(asyncio.create_task(compute(request)))


async def decode(name, directory, inbox, prefills, results, with_torch):
    cache = PagedCache(with_torch)
    async with aio.Node(name, directory=directory) as node:  # transfer
        node.register("kv", cache.tensors)  # transfer
        peers = {name: await node.connect(name, timeout=300) for name in prefills}  # transfer

        async def serve(producer, request, src_blocks):
            dst_blocks = await cache.allocate(len(src_blocks))
            await peers[producer].pull("kv", src_blocks, dst_blocks)  # transfer
            prefills[producer].put(("pulled", request, src_blocks))
            found = [array[dst_blocks] for array in cache.arrays]
            results.put((request, np.array_equal(found, computed(request))))
            cache.release(dst_blocks)

        serving = []
        while (message := await asyncio.to_thread(inbox.get)) is not None:
            serving.append(asyncio.create_task(serve(*message)))
        await asyncio.gather(*serving)


def run(role, *arguments):
    asyncio.run(role(*arguments))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", action="store_true", help="tensors of torch, not of numpy")
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    results = processes.Queue()
    prefills = {name: processes.Queue() for name in PREFILLS}
    decodes = [processes.Queue() for _ in DECODES]
    with tempfile.TemporaryDirectory() as folder:
        directory = str(Path(folder) / "nodes")
        started = [
            processes.Process(
                target=run, args=(prefill, name, directory, inbox, decodes, options.torch)
            )
            for name, inbox in prefills.items()
        ] + [
            processes.Process(
                target=run, args=(decode, name, directory, inbox, prefills, results, options.torch)
            )
            for name, inbox in zip(DECODES, decodes, strict=True)
        ]
        for process in started:
            process.start()
        for request in range(options.requests):
            prefills[PREFILLS[request % len(PREFILLS)]].put(("compute", request, None))
        served = dict(results.get(timeout=300) for _ in range(options.requests))
        for inbox in (*decodes, *prefills.values()):
            inbox.put(None)
        for process in started:
            process.join()
    wrong = sorted(request for request, equal in served.items() if not equal)
    if wrong or any(process.exitcode for process in started):
        raise SystemExit(f"wrong bytes in requests {wrong}")
    print(f"{len(served)} requests served, every byte checked")


if __name__ == "__main__":
    main()
