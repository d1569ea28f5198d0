"""Calls that transfer between caches of unequal layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llm_datadist._cache_manager.call_group import Calls
from llm_datadist._cache_manager.layout_arguments import check_layouts, check_tokens
from llm_datadist._tracing import request_trace
from llm_datadist._types import BlocksCacheKey, Cache
from llm_datadist._types.checks import INT32_MAX, check_bool, check_instance, check_int, check_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._engine.transfer.resharded_plans import ReshardCall
    from llm_datadist._plan.layouts import KvLayout, RankReport, Tokens
    from llm_datadist._types import BlockList
    from llm_datadist._types.streams import After


class ReshardedCalls(Calls):
    """Calls between one local cache and the caches of several ranks *(extension)*."""

    def pull_resharded(
        self,
        src_cache_keys: Sequence[BlocksCacheKey],
        dst_cache: Cache,
        src_blocks: Sequence[BlockList],
        dst_blocks: BlockList,
        num_tokens: int,
        *,
        src_offset: int = 0,
        dst_offset: int = 0,
        layers: range | None = None,
        prefer: int = 0,
        src_layouts: Sequence[KvLayout] | None = None,
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Pull tokens from the caches of several ranks, whatever their layouts *(extension)*.

        All caches were registered with a layout. Every rank moves its layers and heads over its own
        link, all at the same time.

        Args:
            src_cache_keys: List or tuple: the cache of each rank. Together they hold what
                `dst_cache` holds.
            dst_cache: Local blocks cache.
            src_blocks: Blocks of each source, in the order of the tokens: token t of a list is in
                block t // block_tokens of it. Ranks of one model usually have equal lists.
            dst_blocks: Local blocks in the order of the tokens, no duplicates.
            num_tokens: Tokens to move.
            src_offset: Tokens of the sources' lists before the first one that moves.
            dst_offset: The same for the local list.
            layers: Layers to fill, numbered over the whole model; None = all of `dst_cache`.
            prefer: Index of the rank to ask first among those that hold the same heads.
            src_layouts: List or tuple: the layout that the cache of each source must have, for
                callers that know it; None = any layout with which the cache was registered.
            request_id: As for `pull_blocks`; each rank is a transfer with a span.
            after: As for `pull_blocks`.

        Raises:
            TypeError: A wrong type.
            ValueError: A negative number.
            LLMException: As `pull_blocks`; LLM_PARAM_INVALID also for a cache without a layout or
                with another one than in `src_layouts`, layouts between which bytes would have to be
                converted, layers or heads that no source holds, lists too short for the tokens. The
                text names the rank, its cluster and its blocks, and `faults` has the memory at
                fault of all ranks.
        One deadline, sync_kv_timeout, holds for all ranks. After a failure of one rank the call
        raises as soon as the others have ended: bytes that were moved stay moved, and nothing lands
        any more. In an opaque interior, whole blocks move.
        Source: docs/design/layouts.md, docs/howto/layouts.md.
        """
        self._engine.check_open("pull_resharded")
        call = _checked_call(
            "pull_resharded", src_cache_keys, dst_cache, src_blocks, dst_blocks, layers,
            check_tokens(num_tokens, src_offset, dst_offset), prefer, write=False,
            layouts=src_layouts, request_id=request_id,
        )  # fmt: skip
        awaited = self._engine.order.awaited(call.operation, after)
        self._engine.resharding.move(call if awaited is None else replace(call, after=awaited))

    def push_resharded(
        self,
        dst_cache_keys: Sequence[BlocksCacheKey],
        src_cache: Cache,
        src_blocks: BlockList,
        dst_blocks: Sequence[BlockList],
        num_tokens: int,
        *,
        src_offset: int = 0,
        dst_offset: int = 0,
        layers: range | None = None,
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Push tokens to the caches of several ranks, whatever their layouts *(extension)*.

        Each destination gets the layers and heads that both caches hold; what it holds besides must
        come from other ranks. The peers' own threads write, as in `push_blocks`.

        Args:
            dst_cache_keys: List or tuple: the cache of each rank. At least one holds something of
                `src_cache`.
            src_cache: Local blocks cache, registered with a layout.
            src_blocks: Local blocks in the order of the tokens.
            dst_blocks: Blocks of each destination in the order of the tokens, no duplicates.
            num_tokens, src_offset, dst_offset: As for `pull_resharded`.
            layers: Layers to send, numbered over the whole model; None = all of `src_cache`.
            request_id: As for `pull_resharded`.
            after: As for `pull_blocks`.

        Raises:
            TypeError, ValueError, LLMException: As `pull_resharded`.
        After a failure the same holds as for `pull_resharded`, at the peers' caches.
        Source: docs/design/layouts.md, docs/howto/layouts.md.
        """
        self._engine.check_open("push_resharded")
        call = _checked_call(
            "push_resharded", dst_cache_keys, src_cache, dst_blocks, src_blocks, layers,
            check_tokens(num_tokens, src_offset, dst_offset), write=True, request_id=request_id,
        )  # fmt: skip
        awaited = self._engine.order.awaited(call.operation, after)
        self._engine.resharding.move(call if awaited is None else replace(call, after=awaited))

    def explain_resharded(
        self,
        cache_keys: Sequence[BlocksCacheKey],
        cache: Cache,
        remote_blocks: Sequence[BlockList],
        local_blocks: BlockList,
        num_tokens: int,
        *,
        push: bool = False,
        src_offset: int = 0,
        dst_offset: int = 0,
        layers: range | None = None,
        prefer: int = 0,
    ) -> tuple[RankReport, ...]:
        """Say what a call with these arguments would do, without moving anything *(extension)*.

        Args:
            cache_keys: The peers' caches.
            cache: The local cache.
            remote_blocks: Blocks of each peer.
            local_blocks: Local blocks.
            push: Explain push_resharded; else pull_resharded.
            num_tokens, src_offset, dst_offset, layers, prefer: As for `pull_resharded`.

        Returns:
            For each rank that takes part: layers and heads, number of descriptors, an estimate of
            the rate, and the reason for the length of the pieces. For diagnosis: it makes the whole
            plan, and the estimates are rough.
        Raises:
            TypeError, ValueError, LLMException: As `pull_resharded`, before it moves anything.
        Source: docs/howto/layouts.md.
        """
        self._engine.check_open("explain_resharded")
        call = _checked_call(
            "explain_resharded", cache_keys, cache, remote_blocks, local_blocks, layers,
            check_tokens(num_tokens, src_offset, dst_offset), prefer,
            write=check_bool("push", push),
        )  # fmt: skip
        return self._engine.resharding.explain(call)


def _checked_call(
    operation: str,
    keys: object,
    cache: Cache,
    remote_blocks: Sequence[BlockList],
    local_blocks: BlockList,
    layers: range | None,
    tokens: Tokens,
    prefer: int = 0,
    *,
    write: bool,
    layouts: Sequence[KvLayout] | None = None,
    request_id: str | None = None,
) -> ReshardCall:
    """Return the arguments of a call, with the types that its texts name."""
    # Not at the top: the engine would make the import of the package slow.
    from llm_datadist._engine.transfer import resharded_plans  # noqa: PLC0415

    names = resharded_plans.NAMES[operation]
    checked = _checked_keys(names.keys, keys)
    check_instance(names.cache, cache, Cache)
    check_instance(names.remote_blocks, remote_blocks, list, tuple)
    if layers is not None:
        check_range("layers", layers)
    preferred = check_int("prefer", prefer, 0, INT32_MAX)
    return resharded_plans.ReshardCall(
        operation, checked, cache, remote_blocks, local_blocks, tokens, layers, write, preferred,
        None if layouts is None else check_layouts("src_layouts", layouts),
        None if request_id is None else request_trace(operation, request_id, local_blocks),
    )  # fmt: skip


def _checked_keys(name: str, value: object) -> tuple[BlocksCacheKey, ...]:
    keys = check_instance(name, value, list, tuple)
    return tuple(
        check_instance(f"{name}[{place}]", key, BlocksCacheKey) for place, key in enumerate(keys)
    )
