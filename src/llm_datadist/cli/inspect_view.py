"""Tables of `llm-datadist inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["view"]

_COLUMNS = ("id", "kind", "tensors", "shape", "type", "memory", "MiB", "names")
_MOST_CACHES = 40
_MOST_NAMES = 3
_MIB = 1 << 20


def view(look: dict[str, Any]) -> RenderableType:
    """Return the tables of one look: the facts of the link, and the caches."""
    caches = look["caches"]
    parts: list[RenderableType] = [_link_table(look["link"]), Text()]
    if not caches:
        parts.append(Text("the peer has no caches"))
    else:
        total = sum(cache["bytes"] for cache in caches) / _MIB
        parts.append(Text(f"{len(caches)} caches, {total:,.1f} MiB", "bold"))
        parts.append(_cache_table(caches[:_MOST_CACHES]))
        if len(caches) > _MOST_CACHES:
            parts.append(Text(f"and {len(caches) - _MOST_CACHES} more (--json shows all)"))
    return Group(*parts)


def _link_table(link: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in link.items():
        table.add_row(Text(name), Text(_plain(value)))
    return table


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)


def _cache_table(caches: list[dict[str, Any]]) -> Table:
    table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="dim")
    for cache in caches:
        memory = cache["placement"] + ("" if cache["accessible"] else " (not accessible)")
        row = (
            cache["cache_id"],
            cache["kind"],
            cache["num_tensors"],
            "x".join(map(str, cache["shape"])),
            cache["data_type"].removeprefix("DT_"),
            memory,
            f"{cache['bytes'] / _MIB:,.1f}",
            _names(cache),
        )
        table.add_row(*(Text(str(each)) for each in row))
    return table


def _names(cache: dict[str, Any]) -> str:
    """Return the keys of a cache, some of them if there are many."""
    key = cache["blocks_key"]
    names = [] if key is None else [f"model {key['model_id']}"]
    names += [f"req {key['req_id']}" for key in cache["keys"][:_MOST_NAMES]]
    more = len(cache["keys"]) - _MOST_NAMES
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
