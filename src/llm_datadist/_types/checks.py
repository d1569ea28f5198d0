"""Checks of arguments: each returns the plain value or raises TypeError or ValueError.

The texts name the argument, what was given and the remedy; `named_calls` puts the operation before.

Source: api.md 1.1 (integers are anything with `__index__` except bool).
"""

from __future__ import annotations

import math
import operator
from reprlib import Repr
from typing import SupportsIndex, TypeVar, cast, overload

from llm_datadist._types.remedies import remedy_for

__all__ = [
    "INT32_MAX",
    "INT64_MAX",
    "INT64_MIN",
    "UINT32_MAX",
    "UINT64_MAX",
    "check_bool",
    "check_instance",
    "check_int",
    "check_list_of_ints",
    "check_range",
    "check_str",
    "check_uint32",
    "check_uint64",
    "wrong_type",
]

INT32_MAX = 2**31 - 1
INT64_MIN = -(2**63)
INT64_MAX = 2**63 - 1
UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1

_T = TypeVar("_T")
_U = TypeVar("_U")
_V = TypeVar("_V")

_short = Repr()
_short.maxstring = _short.maxother = 60


def wrong_type(name: str, value: object, wanted: str) -> TypeError:
    """Make the exception for a value of the wrong type: `<name> must be int, got str ('x')`.

    The text goes on with a remedy, where the type alone does not say what to give.
    """
    given = "None" if value is None else f"{type(value).__name__} ({_shown(value)})"
    remedy = remedy_for(name)
    return TypeError(f"{name} must be {wanted}, got {given}" + (f"; {remedy}" if remedy else ""))


def _shown(value: object) -> str:
    """Return the beginning and the end of a value's `repr`, on one line."""
    return " ".join(_short.repr(value).split())


def check_int(name: str, value: object, low: float = 0, high: float = UINT64_MAX) -> int:
    """Return `value` as int. The bounds are ints, or infinities for none.

    Raises:
        TypeError: It has no `__index__`, or is a bool.
        ValueError: It is outside [low, high].
    """
    if type(value) is not int:
        if isinstance(value, bool):
            raise wrong_type(name, value, "int")
        try:
            value = operator.index(cast("SupportsIndex", value))
        except TypeError:
            raise wrong_type(name, value, "int") from None
    if not low <= value <= high:
        bounds = f"in [{low}, {high}]" if low > -math.inf else f"at most {high}"
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return value


def check_uint32(name: str, value: object) -> int:
    """Return `value` as int in [0, 2**32); raise as `check_int`."""
    return check_int(name, value, 0, UINT32_MAX)


def check_uint64(name: str, value: object) -> int:
    """Return `value` as int in [0, 2**64); raise as `check_int`."""
    return check_int(name, value, 0, UINT64_MAX)


def check_str(name: str, value: object) -> str:
    """Return `value`; raise TypeError when it is not a str."""
    if not isinstance(value, str):
        raise wrong_type(name, value, "str")
    return value


def check_bool(name: str, value: object) -> bool:
    """Return `value`; raise TypeError when it is not a bool."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "bool")
    return value


@overload
def check_instance(name: str, value: object, kind: type[_T], /) -> _T: ...
@overload
def check_instance(name: str, value: object, kind: type[_T], kind2: type[_U], /) -> _T | _U: ...
@overload
def check_instance(
    name: str, value: object, kind: type[_T], kind2: type[_U], kind3: type[_V], /
) -> _T | _U | _V: ...
@overload
def check_instance(name: str, value: object, /, *types: type) -> object: ...
def check_instance(name: str, value: object, /, *types: type) -> object:
    """Return `value`; raise TypeError when it is an instance of none of `types`."""
    if not isinstance(value, types):
        raise wrong_type(name, value, " or ".join(kind.__name__ for kind in types))
    return value


def check_range(name: str, value: object) -> range:
    """Return `value`; raise TypeError when it is not a range (what it holds is not looked at)."""
    if not isinstance(value, range):
        raise wrong_type(name, value, "range")
    return value


def check_list_of_ints(
    name: str, value: object, low: float = 0, high: float = UINT64_MAX
) -> list[int]:
    """Return a new list of the integers in `value`, a list or tuple.

    Costs about 30 ns an element when all are plain ints, so that block lists of thousands can be
    checked on every call.

    Raises:
        TypeError: Not a list or tuple, or an element is not an integer; the text names its place.
        ValueError: An element is outside [low, high]; the text names its place.
    """
    if not isinstance(value, (list, tuple)):
        raise wrong_type(name, value, "list or tuple of int")
    numbers = cast("list[int]", list(value))
    if not numbers:
        return numbers
    if set(map(type, numbers)) == {int} and min(numbers) >= low and max(numbers) <= high:
        return numbers
    return [check_int(f"{name}[{i}]", number, low, high) for i, number in enumerate(numbers)]
