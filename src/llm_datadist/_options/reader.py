"""Read single options with their types; errors name the key.

Source: api.md 3, 4.2.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from llm_datadist._errors import LLMException, LLMStatusCode, fail
from llm_datadist._options.config import LLMConfig
from llm_datadist._types.checks import UINT64_MAX, wrong_type

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OptionReader"]

_DIGITS = re.compile(r"-?[0-9]{1,30}", re.ASCII)
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_PORT_MAX = 65535
_ATTRIBUTES = {item.key: name for name, item in LLMConfig._properties.items()}
"""Attributes of LLMConfig, by which most programs set an option, by its key."""


class OptionReader:
    """The option dictionary of one call.

    Args:
        options: The dictionary from the caller.
        environ: Environment variables.
        operation: Name of the call, for errors.

    Raises:
        TypeError: options is not a dict, or a key of it is not a str.
    """

    def __init__(self, options: object, environ: Mapping[str, str], operation: str) -> None:
        if not isinstance(options, dict):
            raise wrong_type("options", options, "dict of str to str")
        for key in options:
            if not isinstance(key, str):
                raise wrong_type("a key of options", key, "str")
        self._options = options
        self._environ = environ
        self.operation = operation

    def invalid(self, key: str, problem: str, remedy: str) -> LLMException:
        """Make the LLM_PARAM_INVALID exception for an option."""
        return self._invalid(f"option {key}", problem, remedy)

    def _invalid(self, source: str, problem: str, remedy: str) -> LLMException:
        text = f"{source} {problem}"
        attribute = _ATTRIBUTES.get(source.removeprefix("option "))
        where = "" if attribute is None else f" (LLMConfig.{attribute})"
        return fail(LLMStatusCode.LLM_PARAM_INVALID, self.operation, text, remedy + where)

    def text(self, key: str) -> str | None:
        """Return the text of an option, or None if absent; TypeError when it is not a str."""
        value = self._options.get(key)
        if key in self._options and not isinstance(value, str):
            raise wrong_type(f"option {key}", value, "str")
        return value

    def number(self, key: str, low: int, high: int) -> int | None:
        """Return a decimal integer in [low, high], None when absent."""
        text = self.text(key)
        return None if text is None else self._number(f"option {key}", text, low, high)

    def any_number(self, key: str) -> int | None:
        """Return a decimal integer of any size, None when absent."""
        return self.number(key, -UINT64_MAX, UINT64_MAX)

    def environment_number(self, name: str, low: int, high: int) -> int | None:
        """Return an environment variable as a decimal integer, None when unset or empty."""
        text = self._environ.get(name, "").strip()
        return self._number(f"environment variable {name}", text, low, high) if text else None

    def environment(self, name: str) -> str:
        """Return an environment variable, "" when unset."""
        return self._environ.get(name, "")

    def _number(self, source: str, text: str, low: int, high: int) -> int:
        if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
            remedy = f"give a decimal integer in [{low}, {high}]"
            raise self._invalid(source, f"is {text!r}", remedy)
        return int(text)

    def switch(self, key: str) -> bool | None:
        """Return True for "1", False for "0", None if absent."""
        text = self.text(key)
        if text is None:
            return None
        if text not in {"0", "1"}:
            raise self.invalid(key, f"is {text!r}", 'give "1" or "0"')
        return text == "1"

    def listen(self, key: str) -> tuple[str, int] | None:
        """Return a listen address, None when absent."""
        text = self.text(key)
        return None if text is None else self._address(key, text, text)

    def listen_list(self, key: str) -> list[tuple[str, int]]:
        """Return the listen addresses between semicolons, none when absent."""
        text = self.text(key)
        return [] if text is None else [self._address(key, text, each) for each in text.split(";")]

    def _address(self, key: str, text: str, part: str) -> tuple[str, int]:
        match = _ADDRESS.fullmatch(part)
        if match and int(match["port"]) <= _PORT_MAX:
            try:
                if match["v6"]:
                    return str(ipaddress.IPv6Address(match["v6"])), int(match["port"])
                return str(ipaddress.IPv4Address(match["v4"])), int(match["port"])
            except ValueError:
                pass
        raise self.invalid(
            key,
            f"is {text!r}",
            "give ip:port or [v6]:port, the ip as a literal, the port in [0, 65535]",
        )
