"""Recovery from a memory fault: a page of KV cache goes bad, and its request succeeds.

Two processes, a prefill and a decode side. The prefill side loses a page of its KV cache, as it
would by an uncorrectable memory error. The decode side sees which block it was, the prefill side
repairs the memory and recomputes that block; everything else continues.
"""

import ctypes
import logging
import mmap
import multiprocessing
import sys

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
)

SHAPE = (4, 16, 16, 64)  # tensors, blocks, tokens of a block, numbers of a token: blocks of a page
VICTIM, OTHERS = [3, 9, 4], [5, 6, 7]  # blocks of the request that is hit, and of one that is not
LOST_BLOCK = 9

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def map_pages(address, size, protection):
    """Map new, empty pages, at a given address in place of the old ones."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0x10 if address else 0)  # 0x10: MAP_FIXED
    mapped = libc.mmap(address, size, protection, flags, -1, 0)
    if mapped is None or mapped == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return mapped


READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def compute(kv_cache, blocks):
    """Stands for the model: what is in a block depends on nothing but its number."""
    for block in blocks:
        kv_cache[:, block] = np.sin(np.arange(16 * 64) + block).reshape(16, 64)


def prefill(pipe):
    """Prefill process: owns the KV cache, and repairs its memory."""
    logging.basicConfig(stream=sys.stdout, format="prefill log: %(message)s")
    size = int(np.prod(SHAPE)) * 4
    memory = (ctypes.c_float * (size // 4)).from_address(map_pages(None, size, READ_WRITE))
    kv_cache = np.frombuffer(memory, np.float32).reshape(SHAPE)
    compute(kv_cache, range(SHAPE[1]))
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    with LLMDataDist(LLMRole.PROMPT, 1) as instance:
        instance.init(config.generate_options())
        manager = instance.cache_manager
        desc = CacheDesc(SHAPE[0], SHAPE[1:], DataType.DT_FLOAT)
        addrs = [tensor.ctypes.data for tensor in kv_cache]
        manager.register_blocks_cache(desc, addrs, BlocksCacheKey(1))
        pipe.send(instance.listen_address)
        pipe.recv()
        # An uncorrectable error: the page of one block of one tensor is gone, contents and all.
        map_pages(kv_cache[2, LOST_BLOCK].ctypes.data, mmap.PAGESIZE, 0)
        pipe.send("broken")
        faults = pipe.recv()
        # Repair: new pages at the same address, then tell the library, then compute what was lost.
        for fault in faults:
            map_pages(fault["addr"], fault["size"], READ_WRITE)
        manager.remap_registered_memory(
            [MemInfo(Memtype.MEM_TYPE_DEVICE, fault["addr"], fault["size"]) for fault in faults]
        )
        assert manager.faulted_ranges() == ()
        compute(kv_cache, {fault["block"] for fault in faults})
        pipe.send("repaired")
        pipe.recv()


def main():
    context = multiprocessing.get_context("spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=prefill, args=(other_end,))
    process.start()
    try:
        decode(pipe)
    finally:
        pipe.send("stop")
        process.join()
    assert process.exitcode == 0


def decode(pipe):
    """Decode process: pulls the blocks of requests."""
    kv_cache = np.zeros(SHAPE, np.float32)
    expected = np.zeros(SHAPE, np.float32)
    compute(expected, range(SHAPE[1]))
    config = LLMConfig()
    config.enable_cache_manager = True
    with LLMDataDist(LLMRole.DECODER, 2) as instance:
        instance.init(config.generate_options())
        manager = instance.cache_manager
        desc = CacheDesc(SHAPE[0], SHAPE[1:], DataType.DT_FLOAT)
        cache = manager.register_blocks_cache(desc, [t.ctypes.data for t in kv_cache])
        peer = LLMClusterInfo()
        peer.append_local_ip_info("127.0.0.1", 0)
        peer.append_remote_ip_info(*pipe.recv())
        status, _ = instance.link_clusters([peer])
        assert status == LLMStatusCode.LLM_SUCCESS
        pipe.send("break a page")
        pipe.recv()

        try:
            manager.pull_blocks(BlocksCacheKey(1), cache, VICTIM, [0, 1, 2])
        except LLMException as error:
            problem = error
        else:
            raise AssertionError("the page is gone, the pull cannot succeed")
        assert problem.status_code == LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR
        faults = [{"block": f.block, "addr": f.addr, "size": f.size} for f in problem.faults]
        lost_blocks = [fault["block"] for fault in faults]
        print(f"{problem.status_code.name}: blocks {lost_blocks} of the prefill side are lost")
        assert lost_blocks == [LOST_BLOCK]
        # The other blocks of the same call have arrived, and other requests do not notice.
        assert (kv_cache[:, [0, 2]] == expected[:, [3, 4]]).all()
        manager.pull_blocks(BlocksCacheKey(1), cache, OTHERS, [10, 11, 12])
        assert (kv_cache[:, 10:13] == expected[:, OTHERS]).all()
        print("the other blocks have arrived, and another request was not disturbed")

        pipe.send(faults)
        pipe.recv()
        manager.pull_blocks(BlocksCacheKey(1), cache, lost_blocks, [1])
        assert (kv_cache[:, :3] == expected[:, VICTIM]).all()
        print("after repair, remap and recompute the same request is complete, on the same link")


if __name__ == "__main__":
    main()
