"""Property types of `LLMConfig`: each checks its value and writes it as option text.

Source: api.md 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._types.checks import (
    INT32_MAX,
    UINT32_MAX,
    check_bool,
    check_int,
    check_str,
    wrong_type,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bool", "DeviceIds", "Int", "Milliseconds", "Property", "Str", "Utilization"]

_T = TypeVar("_T")
_P = TypeVar("_P", bound="Property[Any]")


class Property(ABC, Generic[_T]):
    """A property of LLMConfig, None while unset.

    It decorates a function without a body, whose docstring is the property's: so editors and `help`
    show it.

    Args:
        key: Key in the option dictionary.
    """

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self: _P, documented: Callable[[Any], object]) -> _P:  # noqa: PYI019 - Self needs Python 3.11
        """Take the docstring of a function, and return the property."""
        self.__doc__ = " ".join((documented.__doc__ or "").split())
        return self

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, config: None, owner: type) -> Property[_T]: ...
    @overload
    def __get__(self, config: object, owner: type) -> _T | None: ...
    def __get__(self, config: object, owner: type) -> Property[_T] | _T | None:
        if config is None:
            return self
        # A data descriptor takes precedence over the instance's dictionary, which holds the value.
        value: _T | None = vars(config).get(self.name)
        return value

    def __set__(self, config: object, value: _T) -> None:
        vars(config)[self.name] = self.check(value)

    @abstractmethod
    def check(self, value: _T) -> _T:
        """Return the value to store; raise TypeError or ValueError when it is invalid."""

    def options(self, value: _T) -> dict[str, str]:
        """Return the entries of the option dictionary for a value."""
        return {self.key: str(value)}


class Int(Property[int]):
    """An integer in [low, high], written in decimal."""

    def __init__(self, key: str, *, low: float = 0, high: float = UINT32_MAX) -> None:
        super().__init__(key)
        self._low = low
        self._high = high

    def check(self, value: int) -> int:
        return check_int(self.name, value, self._low, self._high)


class Milliseconds(Property["int | str"]):
    """A positive integer or its decimal text; kept as given."""

    def check(self, value: int | str) -> int | str:
        if not isinstance(value, str):
            try:
                return check_int(self.name, value, 1, UINT32_MAX)
            except TypeError:
                raise wrong_type(self.name, value, "int or decimal str") from None
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f"{self.name} must be a decimal number, got {value!r}")
        check_int(self.name, int(value), 1, UINT32_MAX)
        return value


class Str(Property[str]):
    """Text, written as given; "" is a value, not "unset"."""

    def check(self, value: str) -> str:
        return check_str(self.name, value)


class Bool(Property[bool]):
    """A switch, written as "1" or "0"."""

    def check(self, value: bool) -> bool:
        return check_bool(self.name, value)

    def options(self, value: bool) -> dict[str, str]:
        return {self.key: "1" if value else "0"}


class DeviceIds(Property["int | list[int] | tuple[int, ...]"]):
    """One device or several; several set a second key to the first of them."""

    def __init__(self, key: str, list_key: str) -> None:
        super().__init__(key)
        self._list_key = list_key

    def check(self, value: int | list[int] | tuple[int, ...]) -> int | list[int] | tuple[int, ...]:
        if isinstance(value, (list, tuple)):
            if not value:
                raise ValueError(f"{self.name} must name at least one device, got {value!r}")
            for i, number in enumerate(value):
                check_int(f"{self.name}[{i}]", number, 0, INT32_MAX)
            return value
        try:
            return check_int(self.name, value, 0, INT32_MAX)
        except TypeError:
            raise wrong_type(self.name, value, "int, or list or tuple of int") from None

    def options(self, value: int | list[int] | tuple[int, ...]) -> dict[str, str]:
        if isinstance(value, int):
            return {self.key: str(value)}
        numbers = [str(int(number)) for number in value]
        return {self.key: ";".join(numbers), self._list_key: numbers[0]}


class Utilization(Property[float]):
    """A fraction in [0, 1], written in decimal without an exponent."""

    def check(self, value: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong_type(self.name, value, "float")
        if not 0 <= value <= 1:
            raise fail(
                LLMStatusCode.LLM_PARAM_INVALID,
                "LLMConfig",
                f"{self.name} is {value}",
                "give a fraction in [0, 1]",
            )
        return float(value)

    def options(self, value: float) -> dict[str, str]:
        from decimal import Decimal  # noqa: PLC0415 - keeps the import of the package short

        return {self.key: format(Decimal(repr(value)), "f")}
