"""The two ends of a benchmark between hosts: buffers that are offered, and their user.

The offering end registers two buffers, for reads and for writes, as caches of many sizes of blocks.
The other end finds them in its peer's directory; nothing else is exchanged. Reads are checked
against the pattern of the buffer, writes by reading them back.
"""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_datadist import BlocksCacheKey, LLMConfig, LLMDataDist, LLMRole
from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.contender import Contender
from llm_datadist.cli.bench.datadist import register
from llm_datadist.cli.bench.plan import SWEEP, size_text
from llm_datadist.cli.bench.presets import PRESETS
from llm_datadist.cli.bench.work import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection

    from llm_datadist import Cache
    from llm_datadist.cli.bench.plan import Job
    from llm_datadist.cli.bench.work import Memory

__all__ = ["BACKEND", "PEER", "Offer", "Remote", "fitting", "linked", "offered", "offering"]

PEER, BACKEND = "LLM_DATADIST_BENCH_PEER", "LLM_DATADIST_BENCH_BACKEND"
"""Environment variables of the process of `Remote`: the peer's `host:port`, and the data path."""

_SEED = 11
_MARK = 0x4C444442 << 16  # of model_id: caches that serve a model must not be written
_READS, _WRITES = 0, 1  # in the last bit of model_id
_LINK_MS = 10_000
_TRANSFER_MS = 60_000
_MOST_ADDRESSES = 1 << 20


@dataclass(frozen=True)
class Offer:
    """A cache of the offering end.

    Attributes:
        block_bytes, num_tensors: Of its blocks.
        num_blocks: How many it has.
        model_id: Of the key for reads; that for writes is one more.
    """

    block_bytes: int
    num_tensors: int
    num_blocks: int
    model_id: int


@contextmanager
def offering(listen: str, memory_bytes: int) -> Iterator[LLMDataDist]:
    """Offer buffers for benchmarks until the end of the block.

    Args:
        listen: `ip:port` to accept links at.
        memory_bytes: Size of each of the two buffers.

    Raises:
        LLMException: As `LLMDataDist.init`.
    """
    buffers = [work.buffer(memory_bytes) for _ in (_READS, _WRITES)]
    work.fill(buffers[_READS], _SEED)
    with _instance(listen_ip_info=listen) as instance:
        for index, (block_bytes, num_tensors) in enumerate(_shapes()):
            count = memory_bytes // (block_bytes * num_tensors)
            total = count * block_bytes * num_tensors
            if not count:
                continue
            case = Case("", block_bytes, total, tensors=num_tensors)
            for side, memory in enumerate(buffers):
                key = BlocksCacheKey(instance.cluster_id, _MARK + 2 * index + side)
                register(instance, memory, case, key)
        yield instance


def offered(instance: LLMDataDist, peer: int) -> dict[tuple[int, int], Offer]:
    """Return what a linked peer offers, by bytes of a block and number of tensors.

    Raises:
        LLMException: As `describe_remote_caches`.
        ValueError: The peer is no offering end of a benchmark.
    """
    found = {}
    for cache in instance.describe_remote_caches(peer):
        key, shape = cache["blocks_key"], cache["shape"]
        if isinstance(key, dict) and isinstance(shape, list) and len(shape) == 2:
            made = Offer(shape[1], int(str(cache["num_tensors"])), shape[0], key["model_id"])
            if made.model_id >> 16 == _MARK >> 16 and made.model_id % 2 == _READS:
                found[made.block_bytes, made.num_tensors] = made
    if not found:
        raise ValueError("the peer offers nothing: start llm-datadist bench --listen there")
    return found


def fitting(job: Job, offers: Mapping[tuple[int, int], Offer]) -> Job:
    """Return the job with as many blocks as are offered, if its blocks are of one size.

    Raises:
        ValueError: Such blocks, or so many, are not offered.
    """
    case, preset = job.case, job.preset
    offer = offers.get((case.block_bytes, case.tensors))
    more = "start the peer with a larger --memory"
    if preset is None:
        if offer is None:
            sizes = ", ".join(size_text(size) for size, tensors in sorted(offers) if tensors == 1)
            raise ValueError(
                f"--block-size {case.block_bytes}: the peer offers blocks of {sizes}: give some of "
                f"these, or {more}"
            )
        total = min(case.total_bytes, offer.num_blocks * case.block_bytes)
        return replace(job, case=replace(case, total_bytes=total))
    if offer is None:
        raise ValueError(
            f"--preset {preset.name}, TP {preset.tp}: not offered by the peer: leave out --tp, or "
            f"{more}"
        )
    if case.count > offer.num_blocks:
        raise ValueError(
            f"--prompt {job.prompt_tokens}: {case.name} takes {case.total_bytes / work.MIB:,.0f} "
            f"MiB, more than the peer offers: give a shorter one, or {more}"
        )
    return job


@contextmanager
def linked(address: str, backend: str = "auto") -> Iterator[tuple[LLMDataDist, int]]:
    """Link a new instance to an offering end; give the instance and the peer's id.

    Raises:
        LLMException: As `LLMDataDist.init` and `link_peer`.
        ValueError: As `link_peer`.
    """
    with _instance(transfer_backend=backend) as instance:
        yield instance, instance.link_peer(address, timeout=_LINK_MS)


class Remote(Contender):
    """Transfers to and from an offering end, whose address is in the environment."""

    name = "llm-datadist"

    def __init__(self, local: Memory) -> None:
        # No owner process: the owner is on the other host.
        self.local = local
        self._link = linked(os.environ[PEER], os.environ.get(BACKEND, "auto"))
        self.instance: LLMDataDist
        self.instance, self._peer = self._link.__enter__()
        self._offers = offered(self.instance, self._peer)
        self._cache: Cache | None = None
        self._lists: tuple[list[int], list[int]] = ([], [])

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """There is none."""
        raise NotImplementedError

    @property
    def pids(self) -> list[int]:
        """No processes."""
        return []

    def prepare(self, case: Case) -> None:
        """Register the case; the other end has it already."""
        if self._cache is not None:
            self.instance.cache_manager.unregister_cache(self._cache.cache_id)
        self._cache = register(self.instance, self.local, case)
        src, dst = case.blocks()
        self._lists = src.tolist(), dst.tolist()

    def read(self, case: Case) -> None:
        """Pull the case that was prepared."""
        self._pull(_READS, case, *self._lists)

    def write(self, case: Case) -> None:
        """Push the case that was prepared."""
        assert self._cache is not None
        manager, (src, dst) = self.instance.cache_manager, self._lists
        manager.push_blocks(self._key(_WRITES, case), self._cache, src, dst)

    def check_read(self, case: Case, seed: int | None = None) -> None:
        """Prepare the case, and make a read of which every byte is checked."""
        assert seed is None, "the pattern is that of the other end"
        self.prepare(case)
        self.local[: case.total_bytes] = 0
        self.read(case)
        if not work.has_arrived(self.local, case, _SEED, self._offer(case).num_blocks):
            raise RuntimeError(f"pull {case.name}: wrong bytes")

    def check_write(self, case: Case) -> None:
        """Make a write of the case that was prepared, read it back, and check every byte."""
        part = self.local[: case.total_bytes]
        work.fill(part, _SEED + 1)
        self.write(case)
        part[:] = 0
        src, dst = self._lists
        self._pull(_WRITES, case, dst, src)
        if not work.is_filled(part, _SEED + 1):
            raise RuntimeError(f"push {case.name}: wrong bytes")

    def close(self) -> None:
        """End the instance."""
        self._link.__exit__(None, None, None)

    def describe(self) -> dict[str, Any]:
        """Return the facts of the link."""
        return self.instance.describe_link(self._peer)

    def _pull(self, side: int, case: Case, src: list[int], dst: list[int]) -> None:
        assert self._cache is not None
        manager = self.instance.cache_manager
        manager.pull_blocks(self._key(side, case), self._cache, src, dst)

    def _key(self, side: int, case: Case) -> BlocksCacheKey:
        return BlocksCacheKey(self._peer, self._offer(case).model_id + side)

    def _offer(self, case: Case) -> Offer:
        return self._offers[case.block_bytes, case.tensors]


def _instance(**properties: object) -> LLMDataDist:
    config = LLMConfig()
    config.enable_cache_manager = True
    config.auto_relink = False
    config.sync_kv_timeout = _TRANSFER_MS
    config.max_registered_addrs = _MOST_ADDRESSES
    for name, value in properties.items():
        setattr(config, name, value)
    instance = LLMDataDist(LLMRole.PROMPT, secrets.randbits(62))
    instance.init(config.generate_options())
    return instance


def _shapes() -> list[tuple[int, int]]:
    """Return bytes of a block and number of tensors of all that is offered."""
    models = [(each.block_bytes, each.tensors) for each in PRESETS.values()]
    return list(dict.fromkeys([(size, 1) for size in SWEEP] + models))
