"""Status codes and the exceptions that carry them.

What a call of this package may raise, and what each class means::

    BaseException
     +-- Exception
          +-- TypeError        an argument has the wrong Python type
          +-- ValueError       an integer is outside its width, or negative where it must not be
          +-- AttributeError   None where an object is dereferenced (cache description, addrs)
          +-- RuntimeError     a method of an instance that is not initialized
               +-- LLMException   everything else: a bad combination of arguments, a failed
                                  operation (`status_code` says which)

`LLMException` is the only class of this library, and never a TypeError or a ValueError: a caller
distinguishes failures by `LLMException.status_code`. Raise it through `fail`, which gives every
text the same order: operation, status, peer, problem, remedy.

Source: api.md 1.1, 2, 7.9, 9.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import IntEnum, unique
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, SupportsIndex, cast, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "FIRST_GENERATION_STATUSES",
    "Fault",
    "LLMException",
    "LLMStatusCode",
    "NamedIntEnum",
    "Status",
    "fail",
    "finalized",
    "inherited",
    "invalid",
    "name_peer",
    "name_request",
    "restate",
]

_NUMBER_FORMATS = frozenset("bcdeEfFgGnoxX%")


class NamedIntEnum(IntEnum):
    """Base of an enumeration that formats as `str` does, and as its number where a format asks.

    IntEnum itself formats as the name or as the number, depending on the version of Python.
    """

    def __format__(self, format_spec: str) -> str:
        if format_spec and format_spec[-1] in _NUMBER_FORMATS:
            return format(int(self), format_spec)
        return format(str(self), format_spec)


@unique
class LLMStatusCode(NamedIntEnum):
    """Outcome of an operation; prints as `LLMStatusCode.LLM_X`.

    Source: api.md 2 (numbers) and 9 (when each is used, and which exist only because callers name
    them).
    """

    LLM_SUCCESS = 0
    LLM_FAILED = 0xFFFFFFFF
    LLM_WAIT_PROCESS_TIMEOUT = 0x5010B001
    LLM_KV_CACHE_NOT_EXIST = 0x5010B002
    LLM_PARAM_INVALID = 0x5010B005
    LLM_NOT_YET_LINK = 0x5010B007
    LLM_ALREADY_LINK = 0x5010B008
    LLM_LINK_FAILED = 0x5010B009
    LLM_UNLINK_FAILED = 0x5010B00A
    LLM_NOTIFY_PROMPT_UNLINK_FAILED = 0x5010B00B
    LLM_CLUSTER_NUM_EXCEED_LIMIT = 0x5010B00C
    LLM_PROCESSING_LINK = 0x5010B00D
    LLM_DEVICE_OUT_OF_MEMORY = 0x5010B00E
    LLM_EXIST_LINK = 0x5010B018
    LLM_FEATURE_NOT_ENABLED = 0x5010B019
    LLM_TIMEOUT = 0x5010B01A
    LLM_LINK_BUSY = 0x5010B01B
    LLM_OUT_OF_MEMORY = 0x5010B01C
    LLM_UNKNOWN_ERROR = -1

    # Numbers of this library.
    LLM_ENGINE_FINALIZED = 0x5010F001
    LLM_DEVICE_MEM_ERROR = 0x5010F002
    LLM_SUSPECT_REMOTE_ERROR = 0x5010F003
    LLM_REPEAT_REQUEST = 0x5010F004
    LLM_REQUEST_ALREADY_COMPLETED = 0x5010F005
    LLM_PREFIX_ALREADY_EXIST = 0x5010F006
    LLM_PREFIX_NOT_EXIST = 0x5010F007
    LLM_SEQ_LENOVERLIMIT = 0x5010F008
    LLM_NO_FREE_BLOCK = 0x5010F009
    LLM_BLOCKS_OUT_OF_MEMORY = 0x5010F00A

    def __repr__(self) -> str:
        return f"LLMStatusCode.{self.name}"

    def __str__(self) -> str:
        return f"LLMStatusCode.{self.name}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One range of memory that a transfer could not read or write.

    Attributes:
        cluster_id: Instance that owns the memory.
        cache_id: Cache that the range belongs to; None when the transfer named raw addresses.
        tensor_index: Tensor of that cache; None when unknown.
        block: Block of a blocks cache; None for a contiguous cache.
        slot: Slot of a contiguous cache; None for a blocks cache.
        addr: First byte of the range in the owner's address space.
        size: Bytes.

    Source: api.md 7.9 (extension).
    """

    cluster_id: int
    cache_id: int | None
    tensor_index: int | None
    block: int | None = None
    slot: int | None = None
    addr: int
    size: int


class LLMException(RuntimeError):
    """A failed operation, or arguments that do not fit together.

    Args:
        *args: As of any exception; the text is the first.
        status_code: Which failure: an LLMStatusCode or its number.
        operation: Name of the call that failed.
        cluster_id: Peer that it concerned.
        faults: Memory ranges at fault.

    Attributes:
        status_code: An LLMStatusCode. The plain int of an unknown number, which no exception of
            this library has.
        request_id: `request_id` of the transfer call that failed, if it had one.

    Raises:
        TypeError: status_code is not an integer.
    Source: api.md 1.1; operation, cluster_id, faults and request_id are an extension.
    """

    status_code: LLMStatusCode
    operation: str | None
    cluster_id: int | None
    faults: tuple[Fault, ...]
    request_id: str | None

    def __init__(
        self,
        *args: object,
        status_code: LLMStatusCode | int = LLMStatusCode.LLM_UNKNOWN_ERROR,
        operation: str | None = None,
        cluster_id: int | None = None,
        faults: Iterable[Fault] = (),
    ) -> None:
        super().__init__(*args)
        self.status_code = _status_code("LLMException: status_code", status_code)
        self.operation = operation
        self.cluster_id = cluster_id
        self.faults = tuple(faults)
        self.request_id = None

    def __repr__(self) -> str:
        text = ", ".join([*map(repr, self.args), f"status_code={self.status_code}"])
        return f"{type(self).__name__}({text})"


def _status_code(name: str, value: object) -> LLMStatusCode:
    """Return the status of a number, or the number itself if there is none.

    Raises:
        TypeError: It is not an integer.
    """
    if isinstance(value, LLMStatusCode):
        return value
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be LLMStatusCode or int, got {value!r}")
    number = operator.index(cast("SupportsIndex", value))
    try:
        return LLMStatusCode(number)
    except ValueError:
        return cast("LLMStatusCode", number)


def fail(
    status: LLMStatusCode,
    operation: str,
    problem: str,
    remedy: str,
    *,
    cluster_id: int | None = None,
    faults: Iterable[Fault] = (),
) -> LLMException:
    """Make the exception for a failure; the caller raises it.

    The text reads `pull_blocks failed [LLM_TIMEOUT], peer cluster 7: <problem>; <remedy>`.

    Args:
        status: Which failure.
        operation: Public name of the call that fails.
        problem: What is wrong, with the argument or range at fault.
        remedy: What the caller can do about it.
        cluster_id: Peer concerned, if there is one.
        faults: Memory ranges at fault.

    Source: api.md 1.1.
    """
    peer = "" if cluster_id is None else f", peer cluster {cluster_id}"
    return LLMException(
        f"{operation} failed [{status.name}]{peer}: {problem}; {remedy}",
        status_code=status,
        operation=operation,
        cluster_id=cluster_id,
        faults=faults,
    )


def invalid(
    operation: str, problem: str, remedy: str, *, cluster_id: int | None = None
) -> LLMException:
    """Make the exception for an argument that the call refuses (LLM_PARAM_INVALID); see `fail`."""
    return fail(LLMStatusCode.LLM_PARAM_INVALID, operation, problem, remedy, cluster_id=cluster_id)


#: Statuses that the first generation has in place of the cache manager's.
FIRST_GENERATION_STATUSES: Final[Mapping[LLMStatusCode, LLMStatusCode]] = MappingProxyType(
    {
        LLMStatusCode.LLM_TIMEOUT: LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT,
        LLMStatusCode.LLM_OUT_OF_MEMORY: LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY,
    }
)


def restate(error: LLMException, statuses: Mapping[LLMStatusCode, LLMStatusCode]) -> None:
    """Replace the status of an exception, also in its text, if `statuses` has another for it."""
    status = statuses.get(error.status_code)
    if status is not None:
        text = str(error).replace(f"[{error.status_code.name}]", f"[{status.name}]", 1)
        error.args = (text, *error.args[1:])
        error.status_code = status


def name_request(error: LLMException, request_id: str) -> None:
    """Add the caller's name of a request to the exception of its transfer, also to the text."""
    if error.request_id is None:
        error.args = (f"{error} (request {request_id})", *error.args[1:])
        error.request_id = request_id


def finalized(
    operation: str, cluster_id: int | None = None, faults: Iterable[Fault] = ()
) -> LLMException:
    """Make the exception for a call during or after `finalize`."""
    return fail(
        LLMStatusCode.LLM_ENGINE_FINALIZED,
        operation,
        "this instance was finalized",
        "call init again to use it",
        cluster_id=cluster_id,
        faults=faults,
    )


def name_peer(error: LLMException, cluster_id: int) -> None:
    """Say in an exception which peer it concerns, unless it has said so."""
    if error.cluster_id is None:
        status = f"[{error.status_code.name}]"
        text = str(error).replace(status, f"{status}, peer cluster {cluster_id}", 1)
        error.args = (text, *error.args[1:])
        error.cluster_id = cluster_id


@final
class Status:
    """An outcome that is returned, not raised.

    Args:
        status: The outcome: an LLMStatusCode or its number; an unknown number is kept.

    Raises:
        TypeError: status is not an integer.
    Source: api.md 1.1.
    """

    __slots__ = ("_status_code",)

    def __init__(self, status: LLMStatusCode | int) -> None:
        self._status_code = _status_code("Status: status", status)

    @property
    def status_code(self) -> LLMStatusCode:
        """The outcome."""
        return self._status_code

    def is_ok(self) -> bool:
        """Return whether the outcome is LLM_SUCCESS."""
        return self._status_code is LLMStatusCode.LLM_SUCCESS

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Status):
            return self._status_code == other._status_code
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._status_code)

    def __repr__(self) -> str:
        return f"Status({self._status_code})"


def inherited(operation: str) -> str:
    """Return the text for a call in a forked child on an instance of its parent."""
    return (
        f"{operation}: the LLMDataDist instance is not initialized in this process, which was "
        "forked from the one that did; call init() in this process too"
    )
