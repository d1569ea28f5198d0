"""Pulls and pushes: resolve the key, plan, hand to the backend, wait, report.

One transfer is one `_Call`. Its loop runs once, unless the peer's directory has moved on since it
was looked at: then it looks again, and gives up when the key names nothing new.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from llm_datadist._backends.outcomes import ANY_ENTRY, NO_REF, Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._engine.link.data_plane import LookupFailedError
from llm_datadist._engine.memory.containment import FAULTS, Containment
from llm_datadist._engine.memory.fault_marks import fault_at
from llm_datadist._engine.transfer.cache_checks import (
    blocks_for,
    check_apart,
    check_equal,
    check_fits,
    check_pieces,
    check_same_layers,
    check_size,
    remote_blocks,
    remote_slots,
    slots_for,
)
from llm_datadist._engine.transfer.checksums import checkable, faults_of
from llm_datadist._engine.transfer.errors import NO_PLAN, Failure, complete, failure
from llm_datadist._errors import LLMException, LLMStatusCode, fail
from llm_datadist._plan import (
    Plan,
    blocks_array,
    cut_between,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    tensor_ranges,
)
from llm_datadist._registry import CorruptDirectory
from llm_datadist._types import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist._backends.outcomes import Ref
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.link.data_plane import DataPlane
    from llm_datadist._engine.memory.containment import Words
    from llm_datadist._engine.memory.fault_marks import FaultMarks
    from llm_datadist._engine.transfer.checksums import Checksums, Destination
    from llm_datadist._errors import Fault
    from llm_datadist._links import Link
    from llm_datadist._registry import DirectoryReader, LocalCache, Resolved
    from llm_datadist._types import Cache

    Key = BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex
    Layers = tuple[range | None, range | None, int]
    MakePlan = Callable[[Resolved], Plan]

Answer = TypeVar("Answer")

_INVALID = LLMStatusCode.LLM_PARAM_INVALID
_NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
_FROM_DIRECTORY = frozenset({_INVALID, _NOT_EXIST})
"""What a look at the peer's directory, or planning by it, can come to."""


@dataclass(slots=True)
class _Call:
    """What stays the same over the attempts of one call.

    Attributes:
        operation, key, local, write: What is moved where.
        deadline_ns: When it has to be done.
        pulled_layers: Which layers a pull takes, to tell whether it consumes its CacheKey.
    """

    operation: str
    key: Key
    local: LocalCache
    write: bool
    deadline_ns: int
    pulled_layers: Layers | None = None

    def consumes(self, remote: Resolved) -> bool:
        """Whether success ends the key: it pulls every layer of the source."""
        if self.pulled_layers is None or remote.key_ref == NO_REF:
            return False
        src, _, tensors_per_layer = self.pulled_layers
        return src is None or len(src) * tensors_per_layer == remote.cache.layout.num_tensors


@dataclass(slots=True)
class _Attempt:
    """One try: what the key named, what was to be moved, under which references."""

    remote: Resolved | None
    plan: Plan
    local_ref: Ref = NO_REF
    cache_ref: Ref = ANY_ENTRY
    version: int = 0
    different: Plan = NO_PLAN
    """What has other bytes at one side than at the other after the transfer."""


class Transfers:
    """The transfer calls of one instance. Thread-safe."""

    def __init__(self, instance: Instance, fault_marks: FaultMarks, checksums: Checksums) -> None:
        self._cluster_id = instance.cluster_id
        self._life = instance.life
        self._links = instance.links
        self._registry = instance.registry
        self._fault_marks = fault_marks
        self._checksums = checksums
        self._timeout_ms = instance.config.sync_timeout_ms
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

        self._run(operation, key, local, plan, write=False, layers=layers)

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

        self._run(operation, key, local, plan, write=False, layers=layers)

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
        data: DataPlane = link.data
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        call = _Call(operation, BlocksCacheKey(cluster_id), local, True, deadline_ns)
        self._fault_marks.check_local(operation, local, plan, cluster_id, local=True)
        ref = local.ref
        attempt = _Attempt(None, self._planned(call, data, plan), ref)
        outcome = self._move(call, data, attempt)
        faults: tuple[Fault, ...] = ()
        if outcome.code in FAULTS:
            outcome, faults = self._contain(call, link, attempt, outcome)
        if outcome.code not in {Code.OK, Code.STALE}:
            data.failures += 1
            raise self._failure(call, link, attempt, outcome, faults)
        data.count(plan.total_bytes, write=True)

    def _run(
        self,
        operation: str,
        key: Key,
        local: LocalCache,
        make_plan: MakePlan,
        *,
        write: bool,
        layers: Layers | None = None,
    ) -> None:
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        link = self._links.get(key.cluster_id, operation)
        data: DataPlane = link.data
        call = _Call(operation, key, local, write, deadline_ns, layers)
        fresh = data.published
        while True:
            try:
                attempt = self._prepare(call, link, make_plan, fresh=fresh)
            except LLMException as error:
                if fresh or error.status_code not in _FROM_DIRECTORY:
                    data.failures += 1
                    raise
                fresh = True  # the directory may be an old one
                continue
            if local.faulted:
                self._fault_marks.check_local(
                    operation, local, attempt.plan, key.cluster_id, local=True
                )
            if data.marks and (known := self._known(call, link, attempt)):
                if fresh:
                    data.failures += 1
                    raise known
                fresh = True  # the marks may be of a cache that is gone
                continue
            outcome = self._attempt(call, data, attempt)
            if outcome.code == Code.OK:
                data.count(attempt.plan.total_bytes, write=write)
                return
            faults: tuple[Fault, ...] = ()
            if outcome.code in FAULTS:
                outcome, faults = self._contain(call, link, attempt, outcome)
            fresh = True
            if outcome.code == Code.STALE or (
                outcome.code == Code.GONE and self._moved_on(call, link, attempt.cache_ref)
            ):
                continue
            data.failures += 1
            raise self._failure(call, link, attempt, outcome, faults)

    def _known(self, call: _Call, link: Link, attempt: _Attempt) -> LLMException | None:
        remote = attempt.remote
        assert remote is not None
        return self._fault_marks.error_if_marked(call.operation, link, remote.cache, attempt.plan)

    def _prepare(self, call: _Call, link: Link, make_plan: MakePlan, *, fresh: bool) -> _Attempt:
        """Look the key up and plan.

        The version is read before the lookup: what the lookup finds is of that version or newer, so
        that a transfer on condition of the version never follows an older record.
        """
        data: DataPlane = link.data
        if fresh:
            self._ask(call, link, data.directory.refresh)
        version = data.required_version()
        remote = self._lookup(call, link)
        cache_ref = remote.cache.ref
        plan = self._planned(call, data, make_plan(remote), remote)
        return _Attempt(remote, plan, call.local.ref, cache_ref, version)

    @staticmethod
    def _planned(call: _Call, data: DataPlane, plan: Plan, remote: Resolved | None = None) -> Plan:
        """Check a plan, and cut what the planner has made one and cannot be moved as one."""
        if data.in_process:
            check_apart(call.operation, plan, write=call.write)
        there = remote is not None and remote.cache.on_device
        if call.local.device is not None or there:
            # Each tensor may be an allocation of its own, and no copy goes beyond one.
            theirs = () if remote is None else remote.cache.layout.starts
            return cut_between(plan, call.local.layout.starts, theirs)
        return checkable(plan, call.local.layout.unit_bytes) if data.checked else plan

    def _moved_on(self, call: _Call, link: Link, ref: Ref) -> bool:
        """Whether the key names another cache by now than the one that is gone."""
        if not link.data.peer_end_is_open():
            return False
        self._ask(call, link, link.data.directory.refresh)
        return self._lookup(call, link).cache.ref != ref

    def _attempt(self, call: _Call, data: DataPlane, attempt: _Attempt) -> Outcome:
        remote = attempt.remote
        assert remote is not None
        outcome = self._move(call, data, attempt)
        if outcome.code == Code.OK and call.consumes(remote):
            return data.lanes.consume(remote.key_ref, call.deadline_ns)
        return outcome

    def _move(self, call: _Call, data: DataPlane, attempt: _Attempt) -> Outcome:
        """Move the bytes of an attempt, checked where the link is."""
        transfer = _transfer(call, attempt)
        if not data.checked:
            return complete(data.run(transfer), attempt.plan)
        if transfer.on_device:
            raise fail(
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                call.operation,
                "checksums of an accelerator's memory are not supported",
                'set llm.Checksum to "off"',
                cluster_id=call.key.cluster_id,
            )
        unit_bytes = call.local.layout.unit_bytes
        outcome, attempt.different = self._checksums.run(data, transfer, unit_bytes)
        data.mismatches += outcome.code == Code.CORRUPT
        return complete(outcome, attempt.plan)

    def _lookup(self, call: _Call, link: Link) -> Resolved:
        """What the key names at the peer, as far as is known; asks the peer when nothing is.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST, LLM_PARAM_INVALID (not remote-accessible),
                LLM_TIMEOUT, LLM_LINK_FAILED, LLM_FAILED (a directory that cannot be parsed).
        """
        directory: DirectoryReader = link.data.directory

        def resolve(operation: str, deadline_ns: int) -> Resolved:
            return directory.resolve(operation, call.key, deadline_ns, fresh=False)

        return self._ask(call, link, resolve)

    def _ask(self, call: _Call, link: Link, question: Callable[[str, int], Answer]) -> Answer:
        """Ask the peer's directory something; its failures become the API's."""
        try:
            return question(call.operation, call.deadline_ns)
        except LookupFailedError as error:
            raise self._failure(call, link, _Attempt(None, NO_PLAN), error.outcome) from error
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
        attempt: _Attempt,
        outcome: Outcome,
        faults: tuple[Fault, ...] = (),
    ) -> LLMException:
        if outcome.code == Code.CORRUPT:
            bad = faults_of(attempt.different, self._destination(call, attempt), write=call.write)
            faults = (*bad, *faults)
        cluster_id = call.key.cluster_id
        remote = attempt.remote
        if remote is None:
            name = "the peer's memory"
        else:
            name = f"cache {remote.cache.cache_id} of the peer ({call.key!r})"
        return failure(
            outcome,
            Failure(
                operation=call.operation,
                cluster_id=cluster_id,
                peer=f"cluster {cluster_id} at {link.address}",
                timeout_ms=self._timeout_ms,
                plan=attempt.plan,
                remote_name=name,
                finalizing=self._life.closing,
                peer_alive=not link.lost.is_set() and link.data.peer_end_is_open(),
                faults=faults,
                device_trouble=link.data.device_trouble,
            ),
        )

    def _contain(
        self, call: _Call, link: Link, attempt: _Attempt, outcome: Outcome
    ) -> tuple[Outcome, tuple[Fault, ...]]:
        """Move what a transfer that met a fault can move, and let owners remember the rest.

        Returns:
            How the transfer has ended after all, and the memory at fault. STALE means: once more,
            as the cache has changed meanwhile, or nothing is at fault any more.
        """
        remote = attempt.remote

        def move(local: Words, there: Words, length: Words) -> Outcome:
            part = Plan(local, there, length, int(length.sum()))
            tried = _Attempt(remote, part, attempt.local_ref, attempt.cache_ref)
            moved = self._move(call, link.data, tried)
            attempt.different = tried.different
            return moved

        theirs = None if remote is None else remote.cache
        contained = Containment(move, call.local.layout, None if theirs is None else theirs.layout)
        ended = contained.finish(attempt.plan, outcome)
        if ended is None and not contained.found:
            return Outcome(Code.STALE), ()
        if ended is not None and ended.code in {Code.GONE, Code.STALE}:
            return ended, ()
        own: list[Fault] = []
        others: list[Fault] = []
        for bad in contained.found:
            if bad.is_local:
                own.append(fault_at(self._cluster_id, call.local, bad))
            else:
                others.append(fault_at(call.key.cluster_id, theirs, bad))
        self._fault_marks.mark(call.local, attempt.local_ref, own)
        self._fault_marks.report_to_owner(link, attempt.cache_ref, others)
        first, second = (own, others) if outcome.code == Code.LOCAL_FAULT else (others, own)
        return ended or outcome, (*first, *second)

    def _destination(self, call: _Call, attempt: _Attempt) -> Destination:
        """Return where the bytes went: the instance and its cache."""
        if not call.write:
            return self._cluster_id, call.local
        remote = attempt.remote
        return call.key.cluster_id, None if remote is None else remote.cache


def _transfer(call: _Call, attempt: _Attempt) -> Transfer:
    plan, remote = attempt.plan, attempt.remote
    return Transfer(
        call.write,
        plan.local,
        plan.remote,
        plan.length,
        attempt.local_ref,
        attempt.cache_ref,
        call.deadline_ns,
        NO_REF if remote is None else remote.key_ref,
        attempt.version,
        call.local.device is not None or (remote is not None and remote.cache.on_device),
    )
