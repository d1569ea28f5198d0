"""Maps outcomes of the data plane to the exceptions of the API (api.md 9)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import numpy as np

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.memory.fault_marks import described
from llm_datadist._errors import Fault, LLMException, LLMStatusCode, fail, finalized
from llm_datadist._plan import Plan

_NOTHING = np.empty(0, np.uint64)
NO_PLAN = Plan(_NOTHING, _NOTHING, _NOTHING, 0)
"""No descriptors: for a failure before planning."""


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


def complete(outcome: Outcome, plan: Plan) -> Outcome:
    """Turn a success that moved fewer bytes than planned into a protocol error."""
    if outcome.code == Code.OK and outcome.moved_bytes != plan.total_bytes:
        return outcome._replace(code=Code.PROTOCOL)
    return outcome


def failure(outcome: Outcome, known: Failure) -> LLMException:
    """Make the exception for an outcome that is not OK."""
    gone = (Code.CLOSED, Code.CANCELLED, Code.LOCAL_GONE, Code.GONE)
    if known.finalizing and outcome.code in gone:
        return finalized(known.operation, known.cluster_id, known.faults)
    status, problem, remedy = _explained(outcome, known)
    if known.faults and outcome.code not in (Code.LOCAL_FAULT, Code.REMOTE_FAULT, Code.CORRUPT):
        problem += f"; before that memory at fault was met: {described(known.faults)}"
    return fail(
        status, known.operation, problem, remedy, cluster_id=known.cluster_id, faults=known.faults
    )


def _explained(outcome: Outcome, known: Failure) -> tuple[LLMStatusCode, str, str]:
    """Return status, problem and remedy of a failure."""
    code = outcome.code
    moved = f"{outcome.moved_bytes} of {known.plan.total_bytes} bytes were moved"
    if code == Code.TIMEOUT:
        return (
            LLMStatusCode.LLM_TIMEOUT,
            f"no result from {known.peer} within sync_kv_timeout = {known.timeout_ms} ms, {moved}",
            "retry, recompute, or raise sync_kv_timeout; the link stays usable",
        )
    errno_text = f" ({os.strerror(outcome.sys_errno)})" if outcome.sys_errno else ""
    if code in (Code.PEER_DEAD, Code.CANCELLED) or (
        code in (Code.GONE, Code.CLOSED) and not known.peer_alive
    ):
        return (
            LLMStatusCode.LLM_LINK_FAILED,
            f"the link to {known.peer} ended during the call{errno_text}",
            "link again when the peer is back",
        )
    if code == Code.NO_PATH:
        return (
            LLMStatusCode.LLM_FAILED,
            f"memory of an accelerator cannot be moved: {known.device_trouble or 'unknown'}",
            "mend that and link again, or use host memory; describe_link tells more",
        )
    if code == Code.SYSTEM and outcome.sys_errno == errno.EUSERS:
        return (
            LLMStatusCode.LLM_FAILED,
            f"{known.peer} has no thread for it, and can have none",
            "raise the limit of threads there (ulimit -u, or pids.max of the cgroup)",
        )
    return _explained_by_memory(outcome, known) or (
        LLMStatusCode.LLM_FAILED,
        f"the data path failed with {Code(code).name}{errno_text}, {moved}",
        "see the log of both sides",
    )


def _explained_by_memory(outcome: Outcome, known: Failure) -> tuple[LLMStatusCode, str, str] | None:
    """Return the same if the outcome concerns a cache or its memory, else None."""
    code = outcome.code
    if code == Code.LOCAL_GONE:
        return (
            LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
            "the local cache was unregistered, freed or remapped during the call",
            "keep it registered until the call returns",
        )
    if code in (Code.GONE, Code.STALE):
        return (
            LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
            f"{known.remote_name} was unregistered, freed, consumed or changed during the call",
            "retry if it exists again, else recompute",
        )
    if code == Code.DENIED:
        return (
            LLMStatusCode.LLM_PARAM_INVALID,
            (
                f"the peer refused: its memory {_range(known.plan, outcome)} is not registered and "
                "remote-accessible there"
            ),
            "register that memory at the peer with remote_accessible=True",
        )
    if code == Code.REMOTE_FAULT:
        return (
            LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR,
            f"the peer's memory cannot be accessed: {described(known.faults)}",
            "recompute what was there; the peer repairs the memory and remaps it",
        )
    if code == Code.LOCAL_FAULT:
        return (
            LLMStatusCode.LLM_DEVICE_MEM_ERROR,
            f"own memory cannot be accessed: {described(known.faults)}",
            "repair it, then call remap_registered_memory",
        )
    if code == Code.CORRUPT:
        return (
            LLMStatusCode.LLM_FAILED,
            (
                "the bytes differ between the two sides after the transfer (checksum crc32c): "
                f"{described(known.faults)}"
            ),
            (
                "recompute or transfer again; unless the source was written meanwhile, suspect the "
                "network or the memory between"
            ),
        )
    return None


def _range(plan: Plan, outcome: Outcome) -> str:
    index = outcome.descriptor
    if not 0 <= index < len(plan.length):
        return "at an unknown address"
    return f"at {int(plan.remote[index]):#x}, {int(plan.length[index])} bytes,"
