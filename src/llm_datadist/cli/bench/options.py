"""Options of `llm-datadist bench` from the texts of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist.cli.bench.comparison import Settings
from llm_datadist.cli.bench.paths import PATHS, RIVALS
from llm_datadist.cli.bench.plan import SWEEP, parse_size
from llm_datadist.cli.bench.presets import PRESETS
from llm_datadist.cli.bench.presets import preset as preset_of
from llm_datadist.cli.bench.run import Options
from llm_datadist.cli.bench.work import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_datadist.cli.bench.presets import Preset
    from llm_datadist.cli.bench.results import Operation

__all__ = ["options", "preset_lines", "presets_of"]

_OPERATIONS: tuple[Operation, ...] = ("pull", "push")
_USUAL_PATHS = "same-host,tcp"
_USUAL_PRESET, _USUAL_PROMPT, _SHORT_PROMPT = "llama-3.1-8b", "2048", "512"
_SHORT_S = 30.0
_LONGEST_PROMPT = 1 << 20
_LARGEST_BLOCK = 256 * MIB


def options(
    *,
    paths: str | None,
    operations: str,
    block_sizes: str | None,
    presets: str | None,
    prompts: str | None,
    tp: int | None,
    vs: str,
    limits: bool,
    seconds: float,
    connect: str | None = None,
) -> Options:
    """Return the options of a run.

    Without sizes of blocks, models and prompts all sizes and one model are measured; else what was
    given.

    Raises:
        ValueError: One is unknown or out of its range, naming it and the remedy.
    """
    models = presets is not None or prompts is not None or tp is not None
    if block_sizes is None and not models:
        block_sizes, models = "all", True
    usual = _USUAL_PROMPT if seconds >= _SHORT_S else _SHORT_PROMPT
    return Options(
        paths=_paths(paths, connect),
        operations=[each for each in _OPERATIONS if each in _chosen_operations(operations)],
        block_sizes=_sizes(block_sizes or ""),
        presets=presets_of(presets or _USUAL_PRESET, tp) if models else [],
        prompts=_prompts(prompts or usual) if models else [],
        seconds=seconds,
        settings=_settings(vs, connect, limits=limits),
        connect=connect or "",
    )


def presets_of(names: str, tp: int | None = None) -> list[Preset]:
    """Return the presets of a list, with this tensor parallel size.

    Raises:
        ValueError: One is unknown, or cannot be divided so.
    """
    wanted = list(PRESETS) if names == "all" else _items("--preset", names)
    found = [preset_of(name) for name in wanted]
    return [each if tp is None else each.with_tp(tp) for each in found]


def preset_lines() -> str:
    """Return a line about each preset."""
    lines = []
    for each in PRESETS.values():
        heads = "latent (MLA)" if each.is_latent else f"{each.kv_heads} KV heads"
        lines.append(
            f"{each.name:18} {each.layers:3} layers, {heads} of {each.head_size}, "
            f"{each.data_type}, blocks of {each.block_tokens} tokens, TP {each.tp}: "
            f"{each.token_bytes / 1024:.6g} KiB for each token of a rank"
        )
    return "\n".join(lines)


def _paths(text: str | None, connect: str | None) -> list[str]:
    if connect is None:
        return _chosen("--path", text or _USUAL_PATHS, PATHS)
    return _chosen("--path (with --connect, only one)", text or "auto", ("auto", "tcp"))[:1]


def _settings(vs: str, connect: str | None, *, limits: bool) -> Settings:
    if connect is not None:
        if vs:
            raise ValueError("--vs compares on one host; leave it out with --connect")
        return Settings(limits=False)
    return Settings(rivals=_chosen("--vs", vs, RIVALS) if vs else [], limits=limits)


def _items(option: str, text: str) -> list[str]:
    items = list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
    if not items:
        raise ValueError(f"{option} is empty; give names or numbers, separated by commas")
    return items


def _chosen(option: str, text: str, known: Iterable[str]) -> list[str]:
    items = _items(option, text)
    for item in items:
        if item not in known:
            raise ValueError(f"{option} {item}: unknown; give some of {', '.join(known)}")
    return items


def _chosen_operations(text: str) -> list[str]:
    return _chosen("--operation", text, _OPERATIONS)


def _sizes(text: str) -> list[int]:
    if text in ("", "all"):
        return list(SWEEP) if text else []
    sizes = []
    for item in _items("--block-size", text):
        try:
            size = parse_size(item)
        except ValueError as problem:
            raise ValueError(f"--block-size: {problem}") from None
        if not 8 <= size <= _LARGEST_BLOCK or size % 8:
            raise ValueError(
                f"--block-size {item}: give a multiple of 8 bytes from 8 to "
                f"{_LARGEST_BLOCK // MIB}M"
            )
        sizes.append(size)
    return sorted(set(sizes))


def _prompts(text: str) -> list[int]:
    lengths = []
    for item in _items("--prompt", text):
        digits = item.lower().removesuffix("k")
        length = int(digits) if digits.isascii() and digits.isdigit() else 0
        length *= 1024 if item.lower().endswith("k") else 1
        if not 1 <= length <= _LONGEST_PROMPT:
            raise ValueError(f"--prompt {item}: give numbers of tokens from 1 to {_LONGEST_PROMPT}")
        lengths.append(length)
    return lengths
