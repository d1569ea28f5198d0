"""Turns outcomes of the data plane into the exceptions of the API (api.md 9), in one place."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import numpy as np

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.memory.fault_marks import described
from llm_datadist._errors import Fault, LLMException, LLMStatusCode, fail
from llm_datadist._plan import Plan

_NOTHING = np.empty(0, np.uint64)
NO_PLAN = Plan(_NOTHING, _NOTHING, _NOTHING, 0)
"""For a failure before anything was planned."""


@dataclass(slots=True)
class Failure:
    """What is known when a transfer ended badly.

    Attributes:
        operation: Public name of the call.
        cluster_id: The peer.
        peer: The peer in words, with its address.
        timeout_ms: The deadline that was given.
        plan: The descriptors, to name the range at fault.
        remote_name: The peer's cache in words.
        finalizing: Whether this instance is being finalised.
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
    """Take a success for one only if every byte was moved; a data path may be wrong about it."""
    if outcome.code == Code.OK and outcome.moved_bytes != plan.total_bytes:
        return outcome._replace(code=Code.PROTOCOL)
    return outcome


def failure(outcome: Outcome, known: Failure) -> LLMException:
    """Make the exception for an outcome that is not OK."""
    code = outcome.code
    errno_text = f" ({os.strerror(outcome.sys_errno)})" if outcome.sys_errno else ""
    status = LLMStatusCode.LLM_FAILED
    problem = (
        f"the data path failed with {Code(code).name}{errno_text}, "
        f"{outcome.moved_bytes} of {known.plan.total_bytes} bytes were moved"
    )
    remedy = "see the log of both sides"
    if known.finalizing and code in (Code.CLOSED, Code.CANCELLED, Code.LOCAL_GONE, Code.GONE):
        status = LLMStatusCode.LLM_ENGINE_FINALIZED
        problem, remedy = "this instance was finalised during the call", "do not use it any more"
    elif code == Code.TIMEOUT:
        status = LLMStatusCode.LLM_TIMEOUT
        problem = (
            f"no result from {known.peer} within sync_kv_timeout = {known.timeout_ms} ms, "
            f"{outcome.moved_bytes} of {known.plan.total_bytes} bytes were moved"
        )
        remedy = "retry, recompute, or raise sync_kv_timeout; the link stays usable"
    elif code in (Code.PEER_DEAD, Code.CANCELLED) or (
        code in (Code.GONE, Code.CLOSED) and not known.peer_alive
    ):
        status = LLMStatusCode.LLM_LINK_FAILED
        problem = f"the link to {known.peer} ended during the call{errno_text}"
        remedy = "link again when the peer is back"
    elif code == Code.LOCAL_GONE:
        status = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        problem = "the local cache was unregistered, freed or remapped during the call"
        remedy = "keep it registered until the call returns"
    elif code in (Code.GONE, Code.STALE):
        status = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        problem = (
            f"{known.remote_name} was unregistered, freed, consumed or changed during the call"
        )
        remedy = "retry if it exists again, else recompute"
    elif code == Code.DENIED:
        status = LLMStatusCode.LLM_PARAM_INVALID
        problem = f"the peer refused: its memory {_range(known.plan, outcome)} is not registered"
        problem += " and remote-accessible there"
        remedy = "register that memory at the peer with remote_accessible=True"
    elif code == Code.REMOTE_FAULT:
        status = LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR
        problem = f"the peer's memory cannot be accessed: {described(known.faults)}"
        remedy = "recompute what was there; the peer repairs the memory and remaps it"
    elif code == Code.NO_PATH:
        problem = f"memory of an accelerator cannot be moved: {known.device_trouble or 'unknown'}"
        remedy = "mend that and link again, or use host memory; describe_link tells more"
    elif code == Code.SYSTEM and outcome.sys_errno == errno.EUSERS:
        problem = f"{known.peer} has no thread for it, and can have none"
        remedy = "raise the limit of threads there (ulimit -u, or pids.max of the cgroup)"
    elif code == Code.CORRUPT:
        problem = (
            "the bytes differ between the two sides after the transfer (checksum crc32c): "
            f"{described(known.faults)}"
        )
        remedy = (
            "recompute or transfer again; unless the source was written meanwhile, suspect the "
            "network or the memory between"
        )
    elif code == Code.LOCAL_FAULT:
        status = LLMStatusCode.LLM_DEVICE_MEM_ERROR
        problem = f"own memory cannot be accessed: {described(known.faults)}"
        remedy = "repair it, then call remap_registered_memory"
    if known.faults and code not in (Code.LOCAL_FAULT, Code.REMOTE_FAULT, Code.CORRUPT):
        problem += f"; before that memory at fault was met: {described(known.faults)}"
    return fail(
        status, known.operation, problem, remedy, cluster_id=known.cluster_id, faults=known.faults
    )


def _range(plan: Plan, outcome: Outcome) -> str:
    index = outcome.descriptor
    if not 0 <= index < len(plan.length):
        return "at an unknown address"
    return f"at {int(plan.remote[index]):#x}, {int(plan.length[index])} bytes,"
