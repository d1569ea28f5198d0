"""Transfers between one local cache and the caches of several ranks, of any layouts.

Each rank is one request, which `Attempts` carries out like any other: with its own lookup, checks,
checksums, containment of memory faults and retries. The requests run at the same time and have one
deadline.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

from llm_datadist._control.workers import Workers
from llm_datadist._engine.transfer.attempt import Attempts, Request
from llm_datadist._engine.transfer.cache_checks import local_blocks
from llm_datadist._errors import LLMException, LLMStatusCode, fail, invalid
from llm_datadist._plan import blocks_array, plan_blocks
from llm_datadist._plan.layouts import (
    PlacedLayout,
    Side,
    check_reach,
    plan_rank,
    pull_parts,
    push_parts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.memory.fault_marks import FaultMarks
    from llm_datadist._engine.transfer.checksums import Checksums
    from llm_datadist._plan import Plan
    from llm_datadist._plan.indices import Blocks
    from llm_datadist._plan.layouts import KvLayout, Part, Tokens
    from llm_datadist._registry import LocalCache, Resolved
    from llm_datadist._types import BlockList, BlocksCacheKey, Cache

    Run: TypeAlias = Callable[[], None]

__all__ = ["Resharding"]

_MOST_LINKS = 64
_MOST_SHOWN = 8


@final
@dataclass(frozen=True, slots=True)
class Ranks:
    """The peers of one call.

    Attributes:
        keys: Names of their caches.
        blocks: Blocks of each, in the order of the tokens.
        name: Name of the argument with the blocks, for texts.
        role: "source" or "destination", for texts.
    """

    keys: Sequence[BlocksCacheKey]
    blocks: Sequence[Blocks]
    name: str
    role: str


@final
class Resharding:
    """Carries out pull_resharded and push_resharded of one instance. Thread-safe."""

    def __init__(self, instance: Instance, fault_marks: FaultMarks, checksums: Checksums) -> None:
        self._registry = instance.registry
        self._timeout_ns = instance.config.sync_timeout_ms * 1_000_000
        self._attempts = Attempts(instance, fault_marks, checksums)
        self._workers = Workers("llm_datadist-ranks", _MOST_LINKS)

    def close(self) -> None:
        """End the idle threads; running calls end by themselves."""
        self._workers.dismiss()

    def pull(
        self,
        operation: str,
        keys: Sequence[BlocksCacheKey],
        cache: Cache,
        src_blocks: Sequence[BlockList],
        dst_blocks: BlockList,
        tokens: Tokens,
        layers: range | None,
        prefer: int,
    ) -> None:
        """See CacheManager.pull_resharded."""
        local, layout = self._local(operation, cache, "dst_cache")
        ids = _local_ids(operation, "dst_blocks", dst_blocks, local, unique=True)
        check_reach(operation, "dst_blocks", ids, layout, tokens.dst_offset, tokens)
        ranks = _ranks(operation, keys, src_blocks, "src", unique=False)
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        layouts = self._layouts(operation, ranks, local, deadline_ns)
        for rank, (blocks, remote) in enumerate(zip(ranks.blocks, layouts, strict=True)):
            name = f"src_blocks[{rank}]"
            check_reach(operation, name, blocks, remote, tokens.src_offset, tokens)
        parts, common, wanted = pull_parts(operation, layouts, layout, layers, prefer)
        if not tokens.num_tokens:
            return

        def plan(rank: int, own: list[Part], found: Resolved) -> Plan:
            remote = _checked(operation, ranks, rank, found, layouts[rank])
            if _whole_blocks(own, layout, layouts[rank], tokens):
                blocks = _moved(ids, tokens.dst_offset, tokens, layout)
                remote_blocks = _moved(ranks.blocks[rank], tokens.src_offset, tokens, layout)
                return _plan_blocks(local, blocks, found, remote_blocks)
            src = Side(remote.with_layout(common[rank]), ranks.blocks[rank])
            dst = Side(_placed(local, wanted), ids)
            return plan_rank(operation, own, src, dst, tokens).plan

        self._run(operation, ranks, local, parts, plan, deadline_ns, write=False)

    def push(
        self,
        operation: str,
        keys: Sequence[BlocksCacheKey],
        cache: Cache,
        src_blocks: BlockList,
        dst_blocks: Sequence[BlockList],
        tokens: Tokens,
        layers: range | None,
    ) -> None:
        """See CacheManager.push_resharded."""
        local, layout = self._local(operation, cache, "src_cache")
        ids = _local_ids(operation, "src_blocks", src_blocks, local, unique=False)
        check_reach(operation, "src_blocks", ids, layout, tokens.src_offset, tokens)
        ranks = _ranks(operation, keys, dst_blocks, "dst", unique=True)
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        layouts = self._layouts(operation, ranks, local, deadline_ns)
        for rank, (blocks, remote) in enumerate(zip(ranks.blocks, layouts, strict=True)):
            name = f"dst_blocks[{rank}]"
            check_reach(operation, name, blocks, remote, tokens.dst_offset, tokens)
        parts, common, sent = push_parts(operation, layout, layouts, layers)
        if not tokens.num_tokens:
            return

        def plan(rank: int, own: list[Part], found: Resolved) -> Plan:
            remote = _checked(operation, ranks, rank, found, layouts[rank])
            if _whole_blocks(own, layout, layouts[rank], tokens):
                blocks = _moved(ids, tokens.src_offset, tokens, layout)
                remote_blocks = _moved(ranks.blocks[rank], tokens.dst_offset, tokens, layout)
                return _plan_blocks(local, blocks, found, remote_blocks, push=True)
            src = Side(_placed(local, sent), ids)
            dst = Side(remote.with_layout(common[rank]), ranks.blocks[rank])
            return plan_rank(operation, own, src, dst, tokens, push=True).plan

        self._run(operation, ranks, local, parts, plan, deadline_ns, write=True)

    def _local(self, operation: str, cache: Cache, name: str) -> tuple[LocalCache, KvLayout]:
        local = self._registry.find(operation, cache)
        local_blocks(operation, local, name)
        if local.kv_layout is None:
            raise invalid(
                operation,
                f"{name} is cache {local.cache_id}, which was registered without a layout",
                "give register_blocks_cache (allocate_blocks_cache) a layout",
            )
        return local, local.kv_layout

    def _layouts(
        self, operation: str, ranks: Ranks, local: LocalCache, deadline_ns: int
    ) -> list[KvLayout]:
        """Return the layouts of the peers' caches as they are now."""
        layouts = []
        for rank, key in enumerate(ranks.keys):
            try:
                found = self._attempts.look_up(operation, key, local, deadline_ns)
                layout = found.cache.kv_layout
                if layout is None:
                    raise invalid(
                        operation,
                        f"cache {found.cache.cache_id} was registered there without a layout",
                        "give register_blocks_cache (allocate_blocks_cache) a layout",
                        cluster_id=key.cluster_id,
                    )
            except LLMException as error:
                raise _named(operation, ranks, {rank: error}) from error
            layouts.append(layout)
        return layouts

    def _run(
        self,
        operation: str,
        ranks: Ranks,
        local: LocalCache,
        parts: Sequence[Part],
        plan: Callable[[int, list[Part], Resolved], Plan],
        deadline_ns: int,
        *,
        write: bool,
    ) -> None:
        """Carry out the requests of all ranks at the same time, the first on this thread.

        Raises:
            LLMException: The first failure, when no request runs any more.
        """

        def request(rank: int) -> Request:
            own = [part for part in parts if part.rank == rank]
            return Request(
                operation,
                ranks.keys[rank],
                local,
                lambda found: plan(rank, own, found),
                deadline_ns,
                write,
            )

        requests = {rank: request(rank) for rank in sorted({part.rank for part in parts})}
        failed = {
            rank: error
            for rank, error in zip(requests, self._errors(list(requests.values())), strict=True)
            if error is not None
        }
        if failed:
            raise _named(operation, ranks, failed) from next(iter(failed.values()))

    def _errors(self, requests: list[Request]) -> list[LLMException | None]:
        """Run requests and return what each raised; none runs any more when this returns."""
        first, *others = requests
        running = [self._workers.submit(self._error, request) for request in others]
        errors: list[LLMException | None] = []
        try:
            errors.append(self._error(first))
        finally:  # an interrupt, too, must not leave a request running
            for request, future in zip(others, running, strict=True):
                try:
                    errors.append(future.result())
                except LLMException:  # there is no thread for it
                    errors.append(self._error(request))
        return errors

    def _error(self, request: Request) -> LLMException | None:
        try:
            self._attempts.run(request)
        except LLMException as error:
            return error
        return None


def _whole_blocks(parts: list[Part], local: KvLayout, remote: KvLayout, tokens: Tokens) -> bool:
    """Whether whole blocks of equal layouts move: that needs no arithmetic on layouts."""
    return (
        local == remote
        and [(part.layers, part.heads) for part in parts] == [(local.layers, local.heads)]
        and not any(number % local.block_tokens for number in tokens)
    )


def _moved(blocks: Blocks, offset: int, tokens: Tokens, layout: KvLayout) -> Blocks:
    first = offset // layout.block_tokens
    return blocks[first : first + tokens.num_tokens // layout.block_tokens]


def _plan_blocks(
    local: LocalCache, ids: Blocks, found: Resolved, remote_ids: Blocks, *, push: bool = False
) -> Plan:
    layout, remote = local.layout, found.cache.layout
    return plan_blocks(
        layout, ids, layout.all_tensors, remote, remote_ids, remote.all_tensors, push=push
    )


def _placed(local: LocalCache, layout: KvLayout) -> PlacedLayout:
    return PlacedLayout(layout, local.layout.addrs, local.layout.num_units)


def _checked(
    operation: str, ranks: Ranks, rank: int, found: Resolved, known: KvLayout
) -> PlacedLayout:
    """Return the peer's cache, if its layout is the one that the call was planned for."""
    cache, key = found.cache, ranks.keys[rank]
    if cache.kv_layout != known:
        raise fail(
            LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
            operation,
            f"another cache, of another layout, was registered under {key!r} during the call",
            "retry",
            cluster_id=key.cluster_id,
        )
    num_blocks = cache.layout.num_units
    blocks_array(operation, f"{ranks.name}[{rank}]", ranks.blocks[rank], num_blocks)
    return PlacedLayout(known, cache.layout.addrs, num_blocks)


def _local_ids(
    operation: str, name: str, blocks: BlockList, local: LocalCache, *, unique: bool
) -> Blocks:
    return blocks_array(operation, name, blocks, local.layout.num_units, unique=unique)


def _ranks(
    operation: str,
    keys: Sequence[BlocksCacheKey],
    blocks: Sequence[BlockList],
    side: str,
    *,
    unique: bool,
) -> Ranks:
    """Return the peers of a call, with checked block lists."""
    name = f"{side}_blocks"
    if not keys or len(blocks) != len(keys):
        raise invalid(
            operation,
            f"{side}_cache_keys has {len(keys)} keys, {name} {len(blocks)} lists",
            "give at least one key, and the blocks of each",
        )
    checked = [
        blocks_array(operation, f"{name}[{rank}]", each, None, unique=unique)
        for rank, each in enumerate(blocks)
    ]
    return Ranks(keys, checked, name, "source" if side == "src" else "destination")


def _named(operation: str, ranks: Ranks, failed: dict[int, LLMException]) -> LLMException:
    """Return the exception of a call: the first failure, with the ranks and their blocks."""
    rank, error = next(iter(failed.items()))
    blocks = ranks.blocks[rank].tolist()
    shown = ", ".join(map(str, blocks[:_MOST_SHOWN])) + (", ..." if blocks[_MOST_SHOWN:] else "")
    others = [f"{other} [{failed[other].status_code.name}]" for other in failed if other != rank]
    also = f"; {ranks.role} {', '.join(others)} failed as well" if others else ""
    problem = str(error).partition(": ")[2]
    return LLMException(
        f"{operation} failed [{error.status_code.name}], peer cluster "
        f"{ranks.keys[rank].cluster_id}: {ranks.role} {rank} of {len(ranks.keys)} with "
        f"{len(blocks)} blocks ({shown}): {problem}{also}",
        status_code=error.status_code,
        operation=operation,
        cluster_id=ranks.keys[rank].cluster_id,
        faults=tuple(fault for each in failed.values() for fault in each.faults),
    )
