"""Test transfers of `doctor`: links to a peer process, and moves blocks both ways."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)

_BLOCKS = 1024
_BLOCK_BYTES = 64 << 10
_PEER, _LOCAL = 1, 2
_START_S = 30.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Probe:
    """Results; `problem` is empty if every byte arrived."""

    path: str = ""
    reasons: str = ""
    pull_gb_per_s: float = 0.0
    push_gb_per_s: float = 0.0
    one_block_us: float = 0.0
    problem: str = ""


def probe() -> Probe:
    """Move blocks between this process and another one on this machine."""
    with subprocess.Popen(
        [sys.executable, "-m", "llm_datadist.cli.doctor_probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as peer:
        try:
            assert peer.stdout is not None
            address = peer.stdout.readline().split()
            if len(address) != 2:
                return Probe(problem="a second process could not start an instance")
            with LLMDataDist(LLMRole.DECODER, _LOCAL) as instance:
                return _measure(instance, address[0], int(address[1]))
        except (LLMException, OSError) as error:
            return Probe(problem=str(error))
        finally:
            assert peer.stdin is not None
            peer.stdin.close()  # the peer then ends
            _end(peer)


def _end(peer: subprocess.Popen[str]) -> None:
    try:
        peer.wait(_START_S)
    except subprocess.TimeoutExpired:
        peer.kill()


def _measure(instance: LLMDataDist, ip: str, port: int) -> Probe:
    memory, cache = _cache(instance, _LOCAL, listen=False)
    cluster = LLMClusterInfo()
    cluster.append_local_ip_info(_LOOPBACK, 0)
    cluster.append_remote_ip_info(ip, port)
    status, _ = instance.link_clusters([cluster])
    if status != LLMStatusCode.LLM_SUCCESS:
        return Probe(problem=f"two processes cannot link: {status}; the log says why")
    link = instance.describe_link(_PEER)
    manager, key = instance.cache_manager, BlocksCacheKey(_PEER)
    order = np.random.default_rng(0).permutation(_BLOCKS).tolist()
    manager.pull_blocks(key, cache, order, order)  # warm
    if not (memory == _PEER).all():
        return Probe(problem="pulled bytes differ from the peer's")
    pulled = _seconds(lambda: manager.pull_blocks(key, cache, order, order))
    pushed = _seconds(lambda: manager.push_blocks(key, cache, order, order))
    one = min(_seconds(lambda: manager.pull_blocks(key, cache, [0], [0])) for _ in range(50))
    backends, reasons = link["backend"], link["why"]
    assert isinstance(backends, dict)
    assert isinstance(reasons, dict)
    return Probe(
        path=backends["device"],
        reasons="; ".join(f"{name}: {why}" for name, why in reasons.items()),
        pull_gb_per_s=memory.nbytes / pulled / 1e9,
        push_gb_per_s=memory.nbytes / pushed / 1e9,
        one_block_us=one * 1e6,
    )


def _seconds(call: object) -> float:
    assert callable(call)
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _cache(
    instance: LLMDataDist, cluster_id: int, *, listen: bool
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], Cache]:
    """Initialize an instance, and register blocks in which every byte is its cluster id."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.sync_kv_timeout = 10_000
    if listen:
        config.listen_ip_info = f"{_LOOPBACK}:0"
    instance.init(config.generate_options())
    memory = np.full((_BLOCKS, _BLOCK_BYTES), cluster_id, np.uint8)
    cache = instance.cache_manager.register_blocks_cache(
        CacheDesc(1, memory.shape, DataType.DT_UINT8),
        [memory.ctypes.data],
        BlocksCacheKey(cluster_id),
    )
    return memory, cache


def main() -> None:
    """Serve as the peer until standard input ends."""
    with LLMDataDist(LLMRole.PROMPT, _PEER) as instance:
        memory, _ = _cache(instance, _PEER, listen=True)
        address = instance.listen_address
        assert address is not None
        sys.stdout.write(f"{address[0]} {address[1]}\n")
        sys.stdout.flush()
        sys.stdin.read()
        del memory


if __name__ == "__main__":
    main()
