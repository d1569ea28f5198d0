"""Command `llm-datadist bench trace`: its options."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["JsonOption", "TpOption", "VerboseOption", "trace"]

TpOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tensor parallel size; one rank's part moves.", show_default="of the preset"
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show what the processes print.")
]


def trace(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines: timestamp, input_length, output_length, hash_ids."
        ),
    ],
    speed: Annotated[
        float, typer.Option(min=0.001, help="How much faster than the trace the requests come.")
    ] = 1.0,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Only so many, the first.", show_default="all")
    ] = None,
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="The model; bench --preset list shows them.")
    ] = "llama-3.1-8b",
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many layers move: less memory.", show_default="all"),
    ] = None,
    tp: TpOption = None,
    path: Annotated[
        str, typer.Option(metavar="NAME", help="same-host, pool or tcp.")
    ] = "same-host",
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Of the cache of each of the two processes.")
    ] = "1G",
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that one hash of the trace stands for.")
    ] = 512,
    parallel: Annotated[
        int, typer.Option(min=1, max=256, help="Requests whose blocks move at once.")
    ] = 4,
    late_ms: Annotated[
        float, typer.Option(min=0, help="A request is late if its blocks take longer, in ms.")
    ] = 200.0,
    json_file: JsonOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Replay the requests of a trace between a prefill and a decode process on this machine.

    Each request pulls the blocks that it misses in the cache of the decode process, in which the
    blocks that were used last stay. In the end every byte in that cache is checked. The format is
    that of the public traces of Mooncake.

    Exit status: 0 replayed, 1 failed, 2 wrong options or a wrong trace, 130 interrupted.
    """
    from llm_datadist.cli.bench.trace.options import trace_options  # noqa: PLC0415 - slow imports
    from llm_datadist.cli.bench.trace.run import run_trace  # noqa: PLC0415

    try:
        options = trace_options(
            file=file,
            speed=speed,
            requests=requests,
            preset=preset,
            layers=layers,
            tp=tp,
            path=path,
            memory=memory,
            block_tokens=block_tokens,
            parallel=parallel,
            late_ms=late_ms,
        )
    except ValueError as problem:
        typer.echo(f"error: bench trace: {problem}", err=True)
        raise typer.Exit(2) from None
    status = run_trace(options, json_file=json_file, verbose=verbose)
    if status:
        raise typer.Exit(status)
