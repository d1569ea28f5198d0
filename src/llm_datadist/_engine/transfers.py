"""Pulls and pushes: resolve the key, plan, hand to the backend, wait, report.

One transfer is one `_Call`. Its loop runs once, unless the peer's directory has moved on between
the lookup and the transfer: then it looks again, and gives up when the key names nothing new.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist._backends.base import Transfer
from llm_datadist._backends.outcomes import ANY_ENTRY, NO_REF, Code
from llm_datadist._engine.checks import (
    blocks_for,
    check_equal,
    check_fits,
    check_pieces,
    check_same_layers,
    check_size,
    remote_blocks,
    remote_slots,
    slots_for,
)
from llm_datadist._engine.failures import NO_PLAN, Failure, failure
from llm_datadist._engine.link_data import LookupFailedError
from llm_datadist._errors import Fault, LLMException, LLMStatusCode, fail
from llm_datadist._plan import (
    blocks_array,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    tensor_ranges,
)
from llm_datadist._registry import CorruptDirectory
from llm_datadist._types import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._backends.outcomes import Outcome, Ref
    from llm_datadist._engine.engine import Engine
    from llm_datadist._engine.link_data import LinkData
    from llm_datadist._links import Link
    from llm_datadist._plan import Plan
    from llm_datadist._registry import LocalCache, RemoteCache, Resolved
    from llm_datadist._types import Cache

    Key = BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex
    Layers = tuple[range | None, range | None, int]
    MakePlan = Callable[[Resolved], Plan]

_CHANGED = frozenset({Code.GONE, Code.STALE})
_INVALID = LLMStatusCode.LLM_PARAM_INVALID


@dataclass(slots=True)
class _Call:
    """What stays the same over the attempts of one call."""

    operation: str
    key: Key
    local: LocalCache
    write: bool
    consume: bool
    deadline_ns: int


class Transfers:
    """The transfer calls of one instance. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._links = engine.links
        self._registry = engine.registry
        self._timeout_ms = engine.config.sync_timeout_ms
        self._timeout_ns = self._timeout_ms * 1_000_000

    def pull_slot(
        self, operation: str, key: Key, cache: Cache, slot: int, size: int, layers: Layers
    ) -> None:
        """See CacheManager.pull_cache."""
        local = self._registry.find(operation, cache)
        check_size(operation, size)
        layout = slots_for(operation, local, slot, "batch_index")

        def plan(remote: Resolved) -> Plan:
            there = remote_slots(operation, remote, key)
            num_bytes = layout.unit_bytes if size == -1 else size
            check_fits(operation, num_bytes, layout, there)
            src, dst = tensor_ranges(operation, *layers, there.num_tensors, layout.num_tensors)
            return plan_slots(layout, slot, dst, there, remote.slot, src, num_bytes)

        self._run(operation, key, local, plan, write=False, consume=_covers_all(layers))

    def pull_blocks(
        self,
        operation: str,
        key: Key,
        cache: Cache,
        src_blocks: Sequence[int],
        dst_blocks: Sequence[int],
        layers: Layers,
    ) -> None:
        """See CacheManager.pull_blocks."""
        local = self._registry.find(operation, cache)
        layout = blocks_for(operation, local, "dst_cache")
        there = blocks_array(operation, "dst_blocks", dst_blocks, layout.num_units, unique=True)
        here = blocks_array(operation, "src_blocks", src_blocks, None)

        if isinstance(key, BlocksCacheKey):
            check_equal(operation, here, there)

            def plan(remote: Resolved) -> Plan:
                source = remote_blocks(operation, remote, key, layout, here, "src_blocks")
                src, dst = tensor_ranges(operation, *layers, source.num_tensors, layout.num_tensors)
                return plan_blocks(layout, there, dst, source, here, src)

        else:
            if len(here):
                raise fail(
                    _INVALID,
                    operation,
                    f"src_blocks has {len(here)} entries with a {type(key).__name__}",
                    "leave src_blocks empty: the slot is cut into consecutive pieces",
                )

            def plan(remote: Resolved) -> Plan:
                source = remote_slots(operation, remote, key)
                src, dst = tensor_ranges(operation, *layers, source.num_tensors, layout.num_tensors)
                check_pieces(operation, source, layout, len(there))
                return plan_slot_to_blocks(source, remote.slot, src, layout, there, dst)

        self._run(operation, key, local, plan, write=False, consume=_covers_all(layers))

    def push_blocks(
        self,
        operation: str,
        key: BlocksCacheKey,
        cache: Cache,
        src_blocks: Sequence[int],
        dst_blocks: Sequence[int],
        layers: Layers,
    ) -> None:
        """See CacheManager.push_blocks."""
        local = self._registry.find(operation, cache)
        layout = blocks_for(operation, local, "src_cache")
        here = blocks_array(operation, "src_blocks", src_blocks, layout.num_units)
        there = blocks_array(operation, "dst_blocks", dst_blocks, None, unique=True)
        check_equal(operation, here, there)
        check_same_layers(operation, layers)

        def plan(remote: Resolved) -> Plan:
            target = remote_blocks(operation, remote, key, layout, there, "dst_blocks")
            src, dst = tensor_ranges(operation, *layers, layout.num_tensors, target.num_tensors)
            return plan_blocks(layout, here, src, target, there, dst, push=True)

        self._run(operation, key, local, plan, write=True)

    def push_slot(
        self,
        operation: str,
        key: CacheKeyByIdAndIndex,
        cache: Cache,
        slot: int,
        size: int,
        layers: Layers,
    ) -> None:
        """See CacheManager.push_cache."""
        local = self._registry.find(operation, cache)
        check_size(operation, size)
        layout = slots_for(operation, local, slot, "src_batch_index")
        check_same_layers(operation, layers)

        def plan(remote: Resolved) -> Plan:
            target = remote_slots(operation, remote, key)
            num_bytes = layout.unit_bytes if size == -1 else size
            check_fits(operation, num_bytes, layout, target)
            src, dst = tensor_ranges(operation, *layers, layout.num_tensors, target.num_tensors)
            return plan_slots(layout, slot, src, target, remote.slot, dst, num_bytes)

        self._run(operation, key, local, plan, write=True)

    def push_planned(self, operation: str, key: Key, local: LocalCache, plan: MakePlan) -> None:
        """Push by a plan of the caller's (layer-wise transfers)."""
        self._run(operation, key, local, plan, write=True)

    def push_raw(self, operation: str, cluster_id: int, local: LocalCache, plan: Plan) -> None:
        """Push to bare addresses of the peer, which checks them against its accessible regions."""
        link = self._links.get(cluster_id, operation)
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        transfer = Transfer(
            True, plan.local, plan.remote, plan.length, local.ref, ANY_ENTRY, deadline_ns
        )
        outcome = link.data.channel.run(transfer)
        if outcome.code != Code.OK:
            call = _Call(operation, BlocksCacheKey(cluster_id), local, True, False, deadline_ns)
            raise self._failure(call, link, plan, None, outcome)

    def _run(
        self,
        operation: str,
        key: Key,
        local: LocalCache,
        make_plan: MakePlan,
        *,
        write: bool,
        consume: bool = False,
    ) -> None:
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        link = self._links.get(key.cluster_id, operation)
        data: LinkData = link.data
        call = _Call(
            operation, key, local, write, consume and isinstance(key, CacheKey), deadline_ns
        )
        remote = self._lookup(call, link, fresh=data.published)
        while True:
            ref = remote.cache.ref
            plan = make_plan(remote)
            outcome = self._attempt(call, data, remote, ref, plan)
            if outcome.code == Code.OK:
                data.count(plan.total_bytes, write=write)
                return
            if outcome.code in _CHANGED:
                # Looks again at the peer's directory; a key that names the same as before, or
                # nothing any more, ends the call.
                newer = self._lookup(call, link, fresh=True)
                if outcome.code == Code.STALE or newer.cache.ref != ref:
                    remote = newer
                    continue
            data.failures += 1
            raise self._failure(call, link, plan, remote, outcome)

    def _attempt(
        self, call: _Call, data: LinkData, remote: Resolved, ref: Ref, plan: Plan
    ) -> Outcome:
        if len(plan.length):
            transfer = Transfer(
                call.write,
                plan.local,
                plan.remote,
                plan.length,
                call.local.ref,
                ref,
                call.deadline_ns,
                remote.key_ref,
                data.required_version(),
            )
            outcome = data.channel.run(transfer)
        else:
            outcome = data.verify(ref, remote.key_ref)
        if outcome.code == Code.OK and call.consume and remote.key_ref != NO_REF:
            return data.lanes.consume(remote.key_ref, call.deadline_ns)
        return outcome

    def _lookup(self, call: _Call, link: Link, *, fresh: bool) -> Resolved:
        """What the key names at the peer.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST, LLM_PARAM_INVALID (not remote-accessible),
                LLM_TIMEOUT, LLM_LINK_FAILED, LLM_FAILED (a directory that cannot be parsed).
        """
        data: LinkData = link.data
        try:
            return data.directory.resolve(call.operation, call.key, call.deadline_ns, fresh=fresh)
        except LookupFailedError as error:
            raise self._failure(call, link, NO_PLAN, None, error.outcome) from error
        except CorruptDirectory as error:
            raise fail(
                LLMStatusCode.LLM_FAILED,
                call.operation,
                f"the peer's directory cannot be read: {error}",
                "unlink and link again; report this with both versions",
                cluster_id=call.key.cluster_id,
            ) from error

    def _failure(
        self,
        call: _Call,
        link: Link,
        plan: Plan,
        remote: Resolved | None,
        outcome: Outcome,
    ) -> LLMException:
        cluster_id = call.key.cluster_id
        if remote is None:
            name = "the peer's memory"
        else:
            name = f"cache {remote.cache.cache_id} of the peer ({call.key!r})"

        def remote_fault(addr: int, size: int) -> Fault:
            return _fault(cluster_id, remote.cache if remote else None, addr, size)

        def local_fault(addr: int, size: int) -> Fault:
            return _fault(self._engine.cluster_id, call.local, addr, size)

        return failure(
            outcome,
            Failure(
                operation=call.operation,
                cluster_id=cluster_id,
                peer=f"cluster {cluster_id} at {link.address}",
                timeout_ms=self._timeout_ms,
                plan=plan,
                remote_name=name,
                finalizing=self._engine.closing,
                peer_alive=not link.lost.is_set() and link.data.peer_end_is_open(),
                remote_fault=remote_fault,
                local_fault=local_fault,
            ),
        )


def _fault(cluster_id: int, cache: LocalCache | RemoteCache | None, addr: int, size: int) -> Fault:
    piece = next(iter(cache.layout.locate(addr, size)), None) if cache is not None else None
    if cache is None or piece is None:
        return Fault(cluster_id=cluster_id, cache_id=None, tensor_index=None, addr=addr, size=size)
    return Fault(
        cluster_id=cluster_id,
        cache_id=cache.cache_id,
        tensor_index=piece.tensor_index,
        block=piece.unit_index if cache.is_blocks else None,
        slot=None if cache.is_blocks else piece.unit_index,
        addr=addr,
        size=size,
    )


def _covers_all(layers: Layers) -> bool:
    return layers[0] is None and layers[1] is None
