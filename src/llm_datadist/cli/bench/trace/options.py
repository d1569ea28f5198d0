"""Options of `llm-datadist bench trace` from the texts of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist.cli.bench.paths import PATHS
from llm_datadist.cli.bench.plan import parse_size
from llm_datadist.cli.bench.presets import preset as preset_of
from llm_datadist.cli.bench.trace.run import TraceOptions

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["trace_options"]


def trace_options(
    *,
    file: Path,
    speed: float,
    requests: int | None,
    preset: str,
    layers: int | None,
    tp: int | None,
    path: str,
    memory: str,
    block_tokens: int,
    parallel: int,
    late_ms: float,
) -> TraceOptions:
    """Return the options of a replay.

    Raises:
        ValueError: One is unknown or out of its range, naming it and the remedy.
    """
    if path not in PATHS:
        raise ValueError(f"--path {path}: unknown; give one of {', '.join(PATHS)}")
    try:
        memory_bytes = parse_size(memory)
    except ValueError as problem:
        raise ValueError(f"--memory: {problem}") from None
    model = preset_of(preset)
    return TraceOptions(
        file=file,
        most=requests,
        preset=model if tp is None else model.with_tp(tp),
        layers=layers,
        path=path,
        memory_bytes=memory_bytes,
        block_tokens=block_tokens,
        speed=speed,
        parallel=parallel,
        late_ms=late_ms,
    )
