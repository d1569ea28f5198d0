"""Maps outcomes of the data plane to the exceptions of the API (api.md 9)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist._backends.outcomes import OK, Code, Outcome
from llm_datadist._engine.memory.fault_marks import NOT_ACCESSIBLE, REPAIR, described
from llm_datadist._errors import Fault, LLMException, LLMStatusCode, fail, finalized

if TYPE_CHECKING:
    from llm_datadist._plan import Plan
    from llm_datadist._registry import CorruptDirectory


@dataclass(slots=True)
class Failure:
    """Circumstances of a failed transfer.

    Attributes:
        operation: Public name of the call.
        cluster_id: The peer.
        peer: The peer for texts, with its address.
        timeout_ms: The time limit of the call.
        plan: The descriptors, to name a range.
        remote_name: The peer's cache for texts.
        finalizing: Whether this instance is being finalized.
        peer_alive: Whether the link is still up.
        faults: The memory at fault, if the outcome is a fault.
        device_trouble: Why memory of accelerators cannot be moved over the link.
        link_end: Why the link ended, if it has.
    """

    operation: str
    cluster_id: int
    peer: str
    timeout_ms: int
    plan: Plan
    remote_name: str
    finalizing: bool
    peer_alive: bool
    faults: tuple[Fault, ...] = ()
    device_trouble: str = ""
    link_end: str = ""


def corrupt_directory(operation: str, cluster_id: int, error: CorruptDirectory) -> LLMException:
    """Return the exception of a call that cannot read a peer's directory."""
    return fail(
        LLMStatusCode.LLM_FAILED,
        operation,
        f"the peer's directory cannot be read: {error}",
        "unlink and link again; report this with both versions",
        cluster_id=cluster_id,
    )


def complete(outcome: Outcome, plan: Plan) -> Outcome:
    """Turn a success that moved fewer bytes than planned into a protocol error."""
    if outcome.code == OK and outcome.moved_bytes != plan.total_bytes:
        return outcome._replace(code=Code.PROTOCOL)
    return outcome


_ENDED_BY_FINALIZE = frozenset({Code.CLOSED, Code.CANCELLED, Code.LOCAL_GONE, Code.GONE})
_FAULTS_IN_TEXT = frozenset({Code.LOCAL_FAULT, Code.REMOTE_FAULT, Code.CORRUPT})

_LINK_FAILED = (
    LLMStatusCode.LLM_LINK_FAILED,
    "the link to {peer} ended during the call{link_end}{errno}",
    "link again when the peer is back",
)
_GONE = (
    LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
    "{remote_name} was unregistered, freed or changed during the call",
    "retry if it exists again, else recompute",
)
_NO_THREAD = (
    LLMStatusCode.LLM_FAILED,
    "{peer} has no thread for it, and can have none",
    "raise the limit of threads there (ulimit -u, or pids.max of the cgroup)",
)
_OTHER = (
    LLMStatusCode.LLM_FAILED,
    "the data path failed with {code}{errno}, {moved}",
    "see the log of both sides",
)
_EXPLAINED = {
    Code.TIMEOUT: (
        LLMStatusCode.LLM_TIMEOUT,
        "no result from {peer} within sync_kv_timeout = {timeout_ms} ms, {moved}",
        "retry, recompute, or raise sync_kv_timeout; the link stays usable",
    ),
    Code.PEER_DEAD: _LINK_FAILED,
    Code.CANCELLED: _LINK_FAILED,
    Code.GONE: _GONE,
    Code.STALE: _GONE,
    Code.LOCAL_GONE: (
        LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
        "the local cache was unregistered, freed or remapped during the call",
        "keep it registered until the call returns",
    ),
    Code.DENIED: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "the peer refused: its memory {range} is not registered and remote-accessible there",
        "register that memory at the peer with remote_accessible=True",
    ),
    Code.REMOTE_FAULT: (
        LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR,
        f"the peer's {NOT_ACCESSIBLE}: {{faults}}",
        "recompute what was there; the peer repairs the memory and remaps it",
    ),
    Code.LOCAL_FAULT: (
        LLMStatusCode.LLM_DEVICE_MEM_ERROR,
        f"local {NOT_ACCESSIBLE}: {{faults}}",
        REPAIR,
    ),
    Code.NO_PATH: (
        LLMStatusCode.LLM_FAILED,
        "memory of an accelerator cannot be moved: {device_trouble}",
        "mend that and link again, or use host memory; describe_link tells more",
    ),
    Code.CORRUPT: (
        LLMStatusCode.LLM_FAILED,
        "the bytes differ between the two sides after the transfer (checksum crc32c): {faults}",
        (
            "recompute or transfer again; unless the source was written meanwhile, suspect the "
            "network or the memory between"
        ),
    ),
}
"""Status, problem and remedy by outcome."""


def failure(outcome: Outcome, known: Failure) -> LLMException:
    """Make the exception for an outcome that is not OK."""
    code = Code(outcome.code)
    if known.finalizing and code in _ENDED_BY_FINALIZE:
        return finalized(known.operation, known.cluster_id, known.faults)
    explained = _EXPLAINED.get(code, _OTHER)
    if code in {Code.GONE, Code.CLOSED} and not known.peer_alive:
        explained = _LINK_FAILED
    elif code == Code.SYSTEM and outcome.sys_errno == errno.EUSERS:
        explained = _NO_THREAD
    status, problem, remedy = explained
    problem = problem.format(
        code=code.name,
        errno=f" ({os.strerror(outcome.sys_errno)})" if outcome.sys_errno else "",
        moved=f"{outcome.moved_bytes} of {known.plan.total_bytes} bytes were moved",
        range=_range(known.plan, outcome),
        faults=described(known.faults),
        peer=known.peer,
        timeout_ms=known.timeout_ms,
        remote_name=known.remote_name,
        device_trouble=known.device_trouble or "unknown",
        link_end=f": {known.link_end}" if known.link_end else "",
    )
    if known.faults and code not in _FAULTS_IN_TEXT:
        problem += f"; before that memory at fault was met: {described(known.faults)}"
    return fail(
        status, known.operation, problem, remedy, cluster_id=known.cluster_id, faults=known.faults
    )


def _range(plan: Plan, outcome: Outcome) -> str:
    index = outcome.descriptor
    if not 0 <= index < len(plan.length):
        return "at an unknown address"
    return f"at {int(plan.remote[index]):#x}, {int(plan.length[index])} bytes,"
