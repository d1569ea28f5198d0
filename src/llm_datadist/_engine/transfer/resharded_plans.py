"""One call of pull_resharded or push_resharded: its checks, and the plan for each rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, final

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
    from collections.abc import Sequence

    from llm_datadist._engine.transfer.order import Awaited
    from llm_datadist._plan import Plan
    from llm_datadist._plan.indices import BlocksArray
    from llm_datadist._plan.layouts import KvLayout, Part, Tokens
    from llm_datadist._registry import LocalCache, Resolved
    from llm_datadist._tracing import RequestTrace
    from llm_datadist._types import BlockList, BlocksCacheKey, Cache

__all__ = [
    "NAMES",
    "Job",
    "Local",
    "Names",
    "Ranks",
    "ReshardCall",
    "checked_local",
    "checked_ranks",
]

_MOST_SHOWN = 8


class Names(NamedTuple):
    """Names that the arguments of a call have, for errors.

    Attributes:
        keys: The keys of the peers' caches.
        cache: The local cache.
        remote_blocks, local_blocks: The blocks of either side.
    """

    keys: str
    cache: str
    remote_blocks: str
    local_blocks: str


#: Argument names of each call, by its public name.
NAMES: Final = {
    "pull_resharded": Names("src_cache_keys", "dst_cache", "src_blocks", "dst_blocks"),
    "push_resharded": Names("dst_cache_keys", "src_cache", "dst_blocks", "src_blocks"),
    "explain_resharded": Names("cache_keys", "cache", "remote_blocks", "local_blocks"),
}


@final
@dataclass(frozen=True, slots=True)
class ReshardCall:
    """Arguments of a call, their types checked.

    Attributes:
        operation: Public name of the call.
        keys: The peers' caches.
        cache: The local cache.
        remote_blocks: Blocks of each peer.
        local_blocks: Blocks of the local cache.
        tokens: Which tokens of the lists.
        layers: Layers to move, None for all.
        write: Whether the local side is the source.
        prefer: The rank to ask first.
        layouts: Layout that each peer's cache must have; None for any.
        trace: The request for which the call was made; None if the caller has not named one.
        after: Work of the caller that must have ended before a byte moves; None for none.
    """

    operation: str
    keys: Sequence[BlocksCacheKey]
    cache: Cache
    remote_blocks: Sequence[BlockList]
    local_blocks: BlockList
    tokens: Tokens
    layers: range | None
    write: bool
    prefer: int = 0
    layouts: Sequence[KvLayout] | None = None
    trace: RequestTrace | None = None
    after: Awaited | None = None

    @property
    def names(self) -> Names:
        """Names of its arguments."""
        return NAMES[self.operation]

    @property
    def local_offset(self) -> int:
        """Tokens before the first one in the local list."""
        return self.tokens.src_offset if self.write else self.tokens.dst_offset

    @property
    def remote_offset(self) -> int:
        """Tokens before the first one in the peers' lists."""
        return self.tokens.dst_offset if self.write else self.tokens.src_offset


@final
@dataclass(frozen=True, slots=True)
class Ranks:
    """The peers of one call.

    Attributes:
        operation: Public name of the call.
        keys: Names of their caches.
        blocks: Blocks of each, in the order of the tokens.
        name: Name of the argument with the blocks, for texts.
        role: "source" or "destination", for texts.
    """

    operation: str
    keys: Sequence[BlocksCacheKey]
    blocks: Sequence[BlocksArray]
    name: str
    role: str

    def failure(self, failed: dict[int, LLMException]) -> LLMException:
        """Return the exception of the call: the first failure, with the ranks and their blocks."""
        rank, error = next(iter(failed.items()))
        blocks = self.blocks[rank].tolist()
        more = ", ..." if blocks[_MOST_SHOWN:] else ""
        shown = ", ".join(map(str, blocks[:_MOST_SHOWN])) + more
        others = [
            f"{other} [{failed[other].status_code.name}]" for other in failed if other != rank
        ]
        also = f"; {self.role} {', '.join(others)} failed as well" if others else ""
        problem = str(error).partition(": ")[2]
        cluster_id = self.keys[rank].cluster_id
        made = LLMException(
            f"{self.operation} failed [{error.status_code.name}], peer cluster {cluster_id}: "
            f"{self.role} {rank} of {len(self.keys)} with {len(blocks)} blocks ({shown}): "
            f"{problem}{also}",
            status_code=error.status_code,
            operation=self.operation,
            cluster_id=cluster_id,
            faults=tuple(fault for each in failed.values() for fault in each.faults),
        )
        made.request_id = error.request_id
        return made


class Local(NamedTuple):
    """The local side of a call: its cache, layout and blocks."""

    cache: LocalCache
    layout: KvLayout
    blocks: BlocksArray


def checked_local(call: ReshardCall, cache: LocalCache) -> Local:
    """Return the local side of a call, with checked blocks.

    Raises:
        TypeError, ValueError, LLMException: As CacheManager.pull_resharded.
    """
    names = call.names
    local_blocks(call.operation, cache, names.cache)
    layout, name = cache.kv_layout, names.local_blocks
    if layout is None:
        raise invalid(
            call.operation,
            f"{names.cache} is cache {cache.cache_id}, which was registered without a layout",
            "give register_blocks_cache (allocate_blocks_cache) a layout",
        )
    num_blocks, unique = cache.layout.num_units, not call.write
    blocks = blocks_array(call.operation, name, call.local_blocks, num_blocks, unique=unique)
    check_reach(call.operation, name, blocks, layout, call.local_offset, call.tokens)
    return Local(cache, layout, blocks)


def checked_ranks(call: ReshardCall) -> Ranks:
    """Return the peers of a call, with checked block lists.

    Raises:
        TypeError, ValueError, LLMException: As CacheManager.pull_resharded.
    """
    keys, lists = call.keys, call.remote_blocks
    name = call.names.remote_blocks
    if not keys or len(lists) != len(keys):
        raise invalid(
            call.operation,
            f"{call.names.keys} has {len(keys)} keys, {name} {len(lists)} lists",
            "give at least one key, and the blocks of each",
        )
    checked = [
        blocks_array(call.operation, f"{name}[{rank}]", each, None, unique=call.write)
        for rank, each in enumerate(lists)
    ]
    if call.layouts is not None and len(call.layouts) != len(keys):
        raise invalid(
            call.operation,
            f"{call.names.keys} has {len(keys)} keys, src_layouts {len(call.layouts)} layouts",
            "give the layout of each, or None",
        )
    role = "destination" if call.write else "source"
    return Ranks(call.operation, keys, checked, name, role)


@final
class Job:
    """A call whose peers' layouts are known: who moves what.

    Attributes:
        parts: What moves, by rank.
        layout: Layout of the local cache.
        layouts: Layouts of the peers' caches.
        common: The same with rows of equal size, the local one last.

    Raises:
        TypeError, ValueError, LLMException: As CacheManager.pull_resharded.
    """

    def __init__(
        self, call: ReshardCall, local: Local, ranks: Ranks, layouts: list[KvLayout]
    ) -> None:
        self._call, self._local, self._ranks = call, local.cache, ranks
        self._ids, self.layout, self.layouts = local.blocks, local.layout, layouts
        operation, tokens = call.operation, call.tokens
        for rank, (blocks, remote) in enumerate(zip(ranks.blocks, layouts, strict=True)):
            each = f"{ranks.name}[{rank}]"
            check_reach(operation, each, blocks, remote, call.remote_offset, tokens)
        if call.write:
            parts, common, own = push_parts(operation, self.layout, layouts, call.layers)
        else:
            parts, common, own = pull_parts(
                operation, layouts, self.layout, call.layers, call.prefer
            )
        self.common = [*common, own]
        self.parts: dict[int, list[Part]] = {}
        for part in parts if tokens.num_tokens else ():
            self.parts.setdefault(part.rank, []).append(part)

    def plan(self, rank: int, found: Resolved) -> Plan:
        """Return the descriptors for one rank.

        Args:
            rank: One of `parts`.
            found: Its cache as it is now.

        Raises:
            LLMException: LLM_PARAM_INVALID: a block out of range; LLM_KV_CACHE_NOT_EXIST: it is a
                cache of another layout than the parts were chosen for.
        """
        call, parts = self._call, self.parts[rank]
        remote = self._checked(rank, found)
        if self.moves_whole_blocks(rank):
            local, peer = self._local.layout, found.cache.layout
            ids = self._listed(self._ids, call.local_offset)
            remote_ids = self._listed(self._ranks.blocks[rank], call.remote_offset)
            tensors, remote_tensors = local.all_tensors, peer.all_tensors
            return plan_blocks(
                local, ids, tensors, peer, remote_ids, remote_tensors, push=call.write
            )
        own = PlacedLayout(self.common[-1], self._local.layout.addrs, self._local.layout.num_units)
        near = Side(own, self._ids)
        far = Side(remote.with_layout(self.common[rank]), self._ranks.blocks[rank])
        src, dst = (near, far) if call.write else (far, near)
        return plan_rank(call.operation, parts, src, dst, call.tokens, push=call.write).plan

    def moves_whole_blocks(self, rank: int) -> bool:
        """Whether whole blocks of equal layouts move: that needs no arithmetic on layouts."""
        layout = self.layout
        return (
            layout == self.layouts[rank]
            and [part[1:] for part in self.parts[rank]] == [(layout.layers, layout.heads)]
            and not any(number % layout.block_tokens for number in self._call.tokens)
        )

    def _listed(self, blocks: BlocksArray, offset: int) -> BlocksArray:
        first = offset // self.layout.block_tokens
        return blocks[first : first + self._call.tokens.num_tokens // self.layout.block_tokens]

    def _checked(self, rank: int, found: Resolved) -> PlacedLayout:
        """Return the peer's cache, if its layout is the one that the parts were chosen for."""
        cache, key, operation = found.cache, self._ranks.keys[rank], self._call.operation
        if cache.kv_layout != self.layouts[rank]:
            raise fail(
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                operation,
                f"another cache, of another layout, was registered under {key!r} during the call",
                "retry",
                cluster_id=key.cluster_id,
            )
        blocks, num_blocks = self._ranks.blocks[rank], cache.layout.num_units
        blocks_array(operation, f"{self._ranks.name}[{rank}]", blocks, num_blocks)
        return PlacedLayout(self.layouts[rank], cache.layout.addrs, num_blocks)
