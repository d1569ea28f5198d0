"""Carries out one transfer: looks up, plans, checks fault marks, moves, consumes the key.

After a memory fault it moves what can be moved (`Containment`). It repeats an attempt that may have
failed because of an outdated view of the peer's directory; other failures are raised.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, TypeAlias, final

import msgspec
from msgspec.structs import replace

from llm_datadist._backends.outcomes import ANY_ENTRY, OK, Code, Outcome
from llm_datadist._backends.transfer import Transfer
from llm_datadist._control.sockets import printed
from llm_datadist._engine.link.data_plane import LookupFailedError
from llm_datadist._engine.memory.containment import FAULTS, Containment
from llm_datadist._engine.memory.fault_marks import fault_at
from llm_datadist._engine.transfer.cache_checks import check_apart
from llm_datadist._engine.transfer.checksums import checkable, faults_of
from llm_datadist._engine.transfer.counters import NO_LINK
from llm_datadist._engine.transfer.errors import (
    Failure,
    complete,
    corrupt_directory,
    failure,
)
from llm_datadist._engine.transfer.order import Awaited
from llm_datadist._engine.transfer.ways import reads_gathered
from llm_datadist._errors import (
    LLMException,
    LLMStatusCode,
    fail,
    name_peer,
    name_request,
    restate,
)
from llm_datadist._plan import NO_PLAN, Layers, Plan, cut_between
from llm_datadist._registry import CorruptDirectory, LocalCache, Resolved, consumed
from llm_datadist._tracing import EndedTransfer, RequestTrace
from llm_datadist._types import AnyKey
from llm_datadist._types.refs import NO_REF

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.link.data_plane import DataPlane
    from llm_datadist._engine.link.ended_notices import EndedNotices
    from llm_datadist._engine.memory.containment import Words
    from llm_datadist._engine.memory.fault_marks import FaultMarks
    from llm_datadist._engine.transfer.checksums import Checksums
    from llm_datadist._engine.transfer.counters import TransferCounters
    from llm_datadist._errors import Fault
    from llm_datadist._links import Link
    from llm_datadist._types.refs import Ref

    MakePlan: TypeAlias = Callable[[Resolved], Plan]

__all__ = ["Attempts", "Request"]

logger = logging.getLogger("llm_datadist")

_RETRIED = frozenset(
    {
        LLMStatusCode.LLM_PARAM_INVALID,
        LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
        LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR,
    }
)
"""Failures before a byte is moved that may come from an outdated view of the peer's directory."""

_LINK_ENDED = frozenset({Code.PEER_DEAD, Code.CANCELLED})
_ENDED_WELL = frozenset({Code.OK, Code.STALE})
_REASON_SECONDS = 0.1


class Request(msgspec.Struct):
    """One transfer call with checked arguments.

    Attributes:
        operation: Public name of the call.
        key: Names the peer's cache.
        local: The local cache.
        plan: Makes the descriptors from what the key names.
        pulled_layers: What a pull takes, to decide whether it consumes its CacheKey; None for
            transfers that consume none.
        trace: The request for which the call was made; None if the caller has not named one.
        write: Whether the peer's cache is the destination.
        deadline_ns: When it must end; 0 = sync_kv_timeout after it has begun.
        after: Work of the caller that must have ended before a byte moves; None for none.
        reshards: Whether the layouts may differ, so that its pieces may be short.
    """

    operation: str
    key: AnyKey
    local: LocalCache
    plan: MakePlan
    pulled_layers: Layers | None = None
    trace: RequestTrace | None = None
    write: bool = False
    deadline_ns: int = 0
    after: Awaited | None = None
    reshards: bool = False

    @property
    def named(self) -> str:
        """The operation, and the request if it has a name, for log lines."""
        return self.operation if self.trace is None else self.trace.named(self.operation)

    def consumes(self, found: Resolved) -> bool:
        """Whether success ends the key: it is a CacheKey, and every layer is pulled."""
        if self.pulled_layers is None or found.key_ref == NO_REF:
            return False
        src, _, tensors_per_layer = self.pulled_layers
        return src is None or len(src) * tensors_per_layer == found.cache.layout.num_tensors


class _Attempt(msgspec.Struct):
    """One attempt of a request, planned.

    Attributes:
        found: What the key names; None for bare addresses.
        transfer: The descriptors, with the references that must hold meanwhile.
        different: Ranges whose checksums differ between the two sides after the transfer.
    """

    found: Resolved | None
    transfer: Transfer
    different: Plan = NO_PLAN


@final
class Attempts:
    """Carries out the transfers of one instance, and counts them. Thread-safe."""

    def __init__(
        self,
        instance: Instance,
        fault_marks: FaultMarks,
        checksums: Checksums,
        counters: TransferCounters,
        notices: EndedNotices,
    ) -> None:
        self._cluster_id = instance.cluster_id
        self._life = instance.life
        self._links = instance.links
        self._statuses = instance.config.statuses
        self._timeout_ms = instance.config.sync_timeout_ms
        self._timeout_ns = instance.config.sync_timeout_ms * 1_000_000
        slow_ms = instance.config.slow_transfer_ms
        self._slow_ns = sys.maxsize if slow_ms is None else slow_ms * 1_000_000
        self._fault_marks = fault_marks
        self._checksums = checksums
        self._counters = counters
        self._notices = notices

    def run(self, request: Request, plan: Plan | None = None) -> None:
        """Carry out a transfer, and count how it has ended.

        Args:
            request: The transfer; with `plan` its key counts for the cluster id alone.
            plan: Descriptors of bare addresses of the peer, which checks them against its
                accessible regions; None: those that `request` makes from what its key names.

        Raises:
            LLMException: As CacheManager.pull_cache.
        """
        began_ns = time.monotonic_ns()
        if not request.deadline_ns:
            request.deadline_ns = began_ns + self._timeout_ns
        link = None
        try:
            link = self._links.get(request.key.cluster_id, request.operation)
            if request.after is not None:
                request.after.wait(request.operation, request.deadline_ns)
            if plan is None:
                attempt = self._run_by_key(request, link)
            else:
                attempt = self._run_by_addresses(request, link, plan)
        except LLMException as error:
            name_peer(error, request.key.cluster_id)
            self._count_failure(request, link, error, began_ns)
            raise
        duration_ns = time.monotonic_ns() - began_ns
        data: DataPlane = link.data
        num_bytes = attempt.transfer.plan.total_bytes
        data.count(num_bytes, request.write)
        path = data.device_path if attempt.transfer.on_device else data.path
        self._counters.add(request.operation, path, num_bytes, duration_ns)
        if duration_ns > self._slow_ns:
            self._log_slow(request, link, f"{num_bytes} bytes over {path}", duration_ns)
        if request.trace is not None:
            where = request.operation, request.key.cluster_id, link.address, path
            transfer = EndedTransfer(*where, num_bytes, duration_ns)
            self._notices.end(request.trace, link, transfer)

    def look_up(self, request: Request) -> Resolved:
        """Return what a key names at this moment, without moving anything; count a failure.

        Raises:
            LLMException: As CacheManager.pull_cache for a key that cannot be used.
        """
        began_ns, link = time.monotonic_ns(), None
        try:
            link = self._links.get(request.key.cluster_id, request.operation)
            return self._look_up(request, link, fresh=True)[1]
        except LLMException as error:
            self._count_failure(request, link, error, began_ns)
            raise

    def _run_by_key(self, request: Request, link: Link) -> _Attempt:
        """Repeat a transfer while the peer's directory changes under it.

        The first attempt uses what is known of the directory, unless reading it costs no message;
        every further one reads it first.
        """
        data: DataPlane = link.data
        fresh = data.published
        while True:
            try:
                version, found = self._look_up(request, link, fresh=fresh)
                cache_ref = found.cache.ref  # before planning: a remap meanwhile ends the transfer
                attempt = _attempt(request, data, request.plan(found), found, cache_ref, version)
                self._check_marks(request, link, attempt)
            except LLMException as error:
                if fresh or error.status_code not in _RETRIED:
                    raise
                logger.debug("%s is repeated: %s", request.named, str(error))
                fresh = True
                continue
            outcome = self._move(request, data, attempt)
            if outcome.code == OK and request.consumes(found):
                outcome = data.lanes.consume(found.key_ref, request.deadline_ns)
            if outcome.code == OK:
                return attempt
            outcome, faults = self._contain(request, link, attempt, outcome)
            if not self._may_retry(request, link, attempt, outcome):
                raise self._error(request, link, outcome, attempt, faults)
            logger.debug("%s is repeated: %s", request.named, Code(outcome.code).name)
            fresh = True

    def _run_by_addresses(self, request: Request, link: Link, plan: Plan) -> _Attempt:
        data: DataPlane = link.data
        attempt = _attempt(request, data, plan)
        self._check_marks(request, link, attempt)
        outcome = self._move(request, data, attempt)
        faults: tuple[Fault, ...] = ()
        if outcome.code != OK:
            outcome, faults = self._contain(request, link, attempt, outcome)
        if outcome.code not in _ENDED_WELL:  # STALE: containment has moved everything
            raise self._error(request, link, outcome, attempt, faults)
        return attempt

    def _count_failure(
        self, request: Request, link: Link | None, error: LLMException, began_ns: int
    ) -> None:
        """Give a failure the status that callers of this generation see, and count it."""
        restate(error, self._statuses)
        if request.trace is not None:
            name_request(error, request.trace.request_id)
        path = NO_LINK
        if link is not None:
            link.data.failures += 1
            data: DataPlane = link.data
            path = data.path if request.local.device is None else data.device_path
        self._counters.add_failure(request.operation, path, error.status_code)
        duration_ns = time.monotonic_ns() - began_ns
        if link is not None and duration_ns > self._slow_ns:
            ended = f"failed over {path} with {error.status_code.name}"
            self._log_slow(request, link, ended, duration_ns)
        if request.trace is not None:
            address = None if link is None else link.address
            where = request.operation, request.key.cluster_id, address, path
            transfer = EndedTransfer(*where, 0, duration_ns, error)
            self._notices.end(request.trace, link, transfer)

    def _log_slow(self, request: Request, link: Link, ended: str, duration_ns: int) -> None:
        logger.warning(
            "slow transfer: %s, peer cluster %d at %s, %s, %.1f ms, llm.SlowTransferMs is %d",
            request.named,
            request.key.cluster_id,
            printed(link.address),
            ended,
            duration_ns / 1e6,
            self._slow_ns // 1_000_000,
        )

    def _look_up(self, request: Request, link: Link, *, fresh: bool) -> tuple[int, Resolved]:
        """Return the directory's version and what the key names.

        The version is read before the lookup: what the lookup finds is of that version or newer, so
        that a transfer on condition of the version never follows an older record.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST, LLM_PARAM_INVALID (not remote-accessible),
                LLM_TIMEOUT, LLM_LINK_FAILED, LLM_FAILED (a directory that cannot be parsed).
        """
        data: DataPlane = link.data
        operation, deadline_ns = request.operation, request.deadline_ns
        try:
            if fresh:
                data.directory.refresh(operation, deadline_ns)
            version = data.required_version()
            found = data.directory.resolve(operation, request.key, deadline_ns, fresh=False)
        except LookupFailedError as error:
            raise self._error(request, link, error.outcome) from error
        except CorruptDirectory as error:
            raise corrupt_directory(operation, request.key.cluster_id, error) from error
        return version, found

    def _check_marks(self, request: Request, link: Link, attempt: _Attempt) -> None:
        """Raise if an attempt touches marked memory, on either side."""
        local, found = request.local, attempt.found
        if local.faulted:
            self._fault_marks.check_local(
                request.operation, local, attempt.transfer.plan, request.key.cluster_id, local=True
            )
        if link.data.marks and found is not None:
            self._fault_marks.check_peer(
                request.operation, link, found.cache, attempt.transfer.plan
            )

    def _move(self, request: Request, data: DataPlane, attempt: _Attempt) -> Outcome:
        """Move the bytes of an attempt, and compare checksums if the link does."""
        transfer = attempt.transfer
        if not data.checked:
            return complete(data.run(transfer), attempt.transfer.plan)
        unit_bytes = request.local.layout.unit_bytes
        outcome, attempt.different = self._checksums.run(data, transfer, unit_bytes)
        data.mismatches += outcome.code == Code.CORRUPT
        return complete(outcome, attempt.transfer.plan)

    def _contain(
        self, request: Request, link: Link, attempt: _Attempt, outcome: Outcome
    ) -> tuple[Outcome, tuple[Fault, ...]]:
        """After a memory fault, move what can be moved and mark the rest at its owner.

        Returns:
            The final outcome, and the memory at fault. STALE means that the transfer must be
            repeated: the cache has changed meanwhile, or nothing is at fault any more.
        """
        if outcome.code not in FAULTS:
            return outcome, ()
        remote = None if attempt.found is None else attempt.found.cache
        whole = attempt.transfer

        def move(local_addrs: Words, remote_addrs: Words, lengths: Words) -> Outcome:
            plan = Plan.of(local_addrs, remote_addrs, lengths)
            tried = _Attempt(attempt.found, replace(whole, plan=plan, version=0))
            moved = self._move(request, link.data, tried)
            attempt.different = tried.different
            return moved

        contained = Containment(
            move, request.local.layout, None if remote is None else remote.layout
        )
        ended = contained.finish(attempt.transfer.plan, outcome)
        if ended is None and not contained.found:
            return Outcome(Code.STALE), ()
        if ended is not None and ended.code in {Code.GONE, Code.STALE}:
            return ended, ()
        local_faults: list[Fault] = []
        remote_faults: list[Fault] = []
        for bad in contained.found:
            if bad.is_local:
                local_faults.append(fault_at(self._cluster_id, request.local, bad))
            else:
                remote_faults.append(fault_at(request.key.cluster_id, remote, bad))
        self._fault_marks.mark(request.local, whole.local_ref, local_faults)
        self._fault_marks.report_to_owner(link, whole.cache_ref, remote_faults)
        if outcome.code == Code.LOCAL_FAULT:
            return ended or outcome, (*local_faults, *remote_faults)
        return ended or outcome, (*remote_faults, *local_faults)

    def _may_retry(self, request: Request, link: Link, attempt: _Attempt, outcome: Outcome) -> bool:
        """Whether a newer record of the peer's directory may lead to success.

        Where the cache is gone, that takes another one under the same key.
        """
        if outcome.code == Code.STALE:
            return True
        if outcome.code != Code.GONE or not link.data.peer_end_is_open():
            return False
        _, found = self._look_up(request, link, fresh=True)
        return found.cache.ref != attempt.transfer.cache_ref

    def _error(
        self,
        request: Request,
        link: Link,
        outcome: Outcome,
        attempt: _Attempt | None = None,
        faults: tuple[Fault, ...] = (),
    ) -> LLMException:
        """Make the exception for a lookup or an attempt that failed."""
        cluster_id = request.key.cluster_id
        found = None if attempt is None else attempt.found
        remote = None if found is None else found.cache
        peer_alive = self._is_alive(link, outcome)
        if outcome.code == Code.GONE and attempt is not None and peer_alive:
            gone = self._key_gone(request, link, attempt)
            if gone is not None:
                return gone
        if outcome.code == Code.CORRUPT and attempt is not None:
            destination = (
                (cluster_id, remote) if request.write else (self._cluster_id, request.local)
            )
            faults = (*faults_of(attempt.different, destination, write=request.write), *faults)
        return failure(
            outcome,
            Failure(
                operation=request.operation,
                cluster_id=cluster_id,
                peer=f"cluster {cluster_id} at {printed(link.address)}",
                timeout_ms=self._timeout_ms,
                plan=NO_PLAN if attempt is None else attempt.transfer.plan,
                remote_name=(
                    "the peer's memory"
                    if remote is None
                    else f"cache {remote.cache_id} of the peer ({request.key!r})"
                ),
                finalizing=self._life.closing,
                peer_alive=peer_alive,
                faults=faults,
                device_trouble=link.data.device_trouble,
                link_end=link.reason,
            ),
        )

    def _is_alive(self, link: Link, outcome: Outcome) -> bool:
        """Return whether the link is up; if it is not, wait a moment for the reason."""
        alive = not link.lost.is_set() and link.data.peer_end_is_open()
        if (not alive or outcome.code in _LINK_ENDED) and not self._life.closing:
            link.lost.wait(_REASON_SECONDS)  # the data path notices before the control connection
        return alive

    def _key_gone(self, request: Request, link: Link, attempt: _Attempt) -> LLMException | None:
        """Return the exception for a key that was consumed while its cache is still live, if so.

        The owner publishes the end of a key later, when a call of it notices.
        """
        if attempt.transfer.key_ref == NO_REF:
            return None
        check = replace(attempt.transfer, plan=NO_PLAN, key_ref=NO_REF)
        if link.data.run(check).code != Code.OK:
            return None
        status = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        problem, remedy = consumed(request.key)
        return fail(status, request.operation, problem, remedy, cluster_id=request.key.cluster_id)


def _attempt(
    request: Request,
    data: DataPlane,
    plan: Plan,
    found: Resolved | None = None,
    cache_ref: Ref = ANY_ENTRY,
    version: int = 0,
) -> _Attempt:
    """Check a plan, and split descriptors that must not be moved as one.

    Those cross an allocation of an accelerator's memory, or a segment of a checked transfer.
    """
    local = request.local
    if data.in_process:
        check_apart(request.operation, plan, write=request.write)
    on_device = local.device is not None or (found is not None and found.cache.on_device)
    if on_device:
        # Each tensor may be an allocation of its own, and no copy goes beyond one.
        remote_starts = () if found is None else found.cache.layout.starts
        plan = cut_between(plan, local.layout.starts, remote_starts)
    elif data.checked:
        plan = checkable(plan, local.layout.unit_bytes)
    transfer = Transfer(
        request.write,
        plan,
        local.ref,
        cache_ref,
        request.deadline_ns,
        NO_REF if found is None else found.key_ref,
        version,
        on_device,
        request.reshards and not on_device and reads_gathered(data, plan, write=request.write),
    )
    return _Attempt(found, transfer)
