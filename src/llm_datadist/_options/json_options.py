"""Parse and check the options whose values are JSON texts.

Source: api.md 3.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llm_datadist._options import keys
from llm_datadist._options.settings import Pool
from llm_datadist._types.checks import INT64_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._options.reader import OptionReader

__all__ = ["check_buf_pool", "check_global_resource_config", "check_local_comm_res", "parse_pool"]

_PAGE_SHIFTS = range(10, 31)
_DEFAULT_PAGE_SHIFT = 16
_VERSIONS = ("1.0", "1.2", "1.3")


def _parse_object(reader: OptionReader, key: str, text: str) -> dict[str, Any]:
    """Return the JSON object in an option's text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise reader.invalid(key, f"is not JSON ({error})", "give a JSON object") from None
    if not isinstance(value, dict):
        raise reader.invalid(key, f"is a JSON {type(value).__name__}", "give a JSON object")
    return value


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def parse_pool(reader: OptionReader, key: str) -> Pool | None:
    """Return the pool that an option describes, or None if it is absent.

    Raises:
        LLMException: LLM_PARAM_INVALID: not a JSON object, or an invalid size or page.
    """
    text = reader.text(key)
    if text is None:
        return None
    value = _parse_object(reader, key, text)
    if "memory_size" not in value:
        raise reader.invalid(key, "has no memory_size", "give memory_size in bytes")
    size, shift = value["memory_size"], value.get("page_shift", _DEFAULT_PAGE_SHIFT)
    if not _is_int(size, 1, INT64_MAX):
        raise reader.invalid(key, f"has memory_size {size!r}", "give a positive number of bytes")
    if not _is_int(shift, _PAGE_SHIFTS.start, _PAGE_SHIFTS.stop - 1):
        raise reader.invalid(key, f"has page_shift {shift!r}", "give an integer in [10, 30]")
    if size < 1 << shift:
        raise reader.invalid(
            key,
            f"has memory_size {size}, less than one page of {1 << shift} bytes",
            "give a larger memory_size or a smaller page_shift",
        )
    return Pool(memory_size=size, page_shift=shift)


def parse_params(reader: OptionReader, key: str) -> dict[str, str]:
    """Return the values of a JSON object as text; empty if the option is absent.

    Raises:
        LLMException: LLM_PARAM_INVALID: not a JSON object, or a value is no text, number or
            switch.
    """
    text = reader.text(key)
    if text is None:
        return {}
    params = {}
    for name, value in _parse_object(reader, key, text).items():
        if isinstance(value, bool):
            params[name] = str(value).lower()
        elif isinstance(value, (str, int, float)):
            params[name] = str(value)
        else:
            raise reader.invalid(key, f"has {name} {value!r}", "give text, a number or a switch")
    return params


def check_buf_pool(reader: OptionReader) -> None:
    """Check that the first generation's buffer pools are a JSON object; they have no effect.

    Raises:
        LLMException: LLM_PARAM_INVALID: not a JSON object.
    """
    text = reader.text(keys.BUF_POOL)
    if text is not None:
        _parse_object(reader, keys.BUF_POOL, text)


def check_local_comm_res(reader: OptionReader, text: str) -> None:
    """Check the version of local_comm_res; the rest, about NPU networks, is ignored.

    Raises:
        LLMException: LLM_PARAM_INVALID: not a JSON object, or of an unknown version.
    """
    if not text:
        return
    version = _parse_object(reader, keys.LOCAL_COMM_RES, text).get("version")
    if version not in _VERSIONS:
        raise reader.invalid(
            keys.LOCAL_COMM_RES,
            f"has version {version!r}",
            f"give one of the versions {', '.join(_VERSIONS)}",
        )


def check_global_resource_config(reader: OptionReader, text: str) -> None:
    """Check the known items of global_resource_config, nested or with dotted names.

    Raises:
        LLMException: LLM_PARAM_INVALID: not a JSON object, or an item of a wrong type or range.
    """
    if not text:
        return
    key = keys.GLOBAL_RESOURCE_CONFIG
    items: dict[str, Any] = {}
    for name, value in _parse_object(reader, key, text).items():
        if name not in _SECTIONS:
            items[name] = value
        elif isinstance(value, dict):
            items.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            raise reader.invalid(key, f"has {name} {value!r}", f"make {name} a JSON object")
    for name, (is_valid, wanted) in _RULES.items():
        if name in items and not is_valid(items[name]):
            raise reader.invalid(key, f"has {name} {items[name]!r}", f"give {wanted}")
    high, low = "channel_pool.high_waterline", "channel_pool.low_waterline"
    if (high in items) != (low in items) or (
        high in items and float(items[low]) >= float(items[high])
    ):
        raise reader.invalid(
            key,
            f"has {high} {items.get(high)!r} and {low} {items.get(low)!r}",
            "give both or neither, the low one below the high one",
        )


def _number(value: object) -> object:
    """Return the number that a decimal text stands for; anything else as it is."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return float(value) if "." in value else int(value)
    return value


def _integer(low: int, high: int, noun: str = "an integer") -> tuple[Callable[[object], bool], str]:
    wanted = f"{noun} in [{low}, {high}], number or decimal text"
    return lambda value: _is_int(_number(value), low, high), wanted


def _is_waterline(value: object) -> bool:
    number = _number(value)
    return isinstance(number, float) and 0 < number < 1


def _is_protocol_desc(value: object) -> bool:
    entries = value if isinstance(value, list) else [value]
    return all(
        isinstance(entry, str) and entry.count(":") <= 1 and all(entry.split(":"))
        for entry in entries
    )


_DECIMAL = re.compile(r"[0-9]{1,19}|[0-9]{0,19}\.[0-9]{1,19}", re.ASCII)
_WATERLINE = (_is_waterline, "a number between 0 and 1, number or decimal text")
_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "comm_resource_config.listen_port": _integer(1, 65535, "a port"),
    "comm_resource_config.qos": _integer(0, 7),
    "comm_resource_config.max_active_channels": _integer(1, INT64_MAX),
    "comm_resource_config.protocol_desc": (
        _is_protocol_desc,
        '"protocol:placement" or "protocol", or a list of such texts',
    ),
    "connect_pool.thread_num": _integer(1, 64),
    "connect_pool.task_queue_capacity": _integer(1, 65535),
    "channel_pool.max_channel": _integer(1, 512),
    "channel_pool.high_waterline": _WATERLINE,
    "channel_pool.low_waterline": _WATERLINE,
    "fabric_memory.max_capacity": _integer(1, 1024),
    "fabric_memory.start_address": _integer(0, 1024),
    "fabric_memory.task_stream_num": _integer(1, 8),
    "fabric_memory.enable_aicpu_unfold": (lambda value: isinstance(value, bool), "true or false"),
}
_SECTIONS = frozenset(name.split(".")[0] for name in _RULES)
