"""Command `llm-datadist bench`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from llm_datadist.cli.bench.trace.command import JsonOption, TpOption, VerboseOption, trace

__all__ = ["bench_app"]

_QUICK_S, _USUAL_S = 10.0, 60.0

bench_app: typer.Typer = typer.Typer(
    name="bench",
    invoke_without_command=True,
    no_args_is_help=False,
    rich_markup_mode="markdown",
    add_completion=False,
)
bench_app.command()(trace)


@bench_app.callback()
def bench(
    context: typer.Context,
    path: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="same-host, pool (memory of a pool, same host), tcp.",
            show_default="same-host,tcp; with --connect what the link chooses",
        ),
    ] = None,
    operation: Annotated[str, typer.Option(metavar="LIST", help="pull, push.")] = "pull,push",
    block_size: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Sizes of blocks, such as 4K,1M; all: 256 bytes to 64 MiB, in steps of four.",
            show_default="all, unless --preset or --prompt is given",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Models whose KV cache moves; list: print them and exit.",
            show_default="llama-3.1-8b, unless --block-size is given",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Tokens of the prompts of these models.",
            show_default="2048; below 30 seconds 512",
        ),
    ] = None,
    tp: TpOption = None,
    vs: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Other libraries, if installed: nixl, mooncake (tcp only)."
        ),
    ] = "",
    limits: Annotated[
        bool,
        typer.Option(help="Also measure process_vm_readv, memcpy, and iperf3 if it is installed."),
    ] = True,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="IP:PORT",
            help="Be the other end of --connect on another host, until Ctrl-C or SIGTERM.",
        ),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="With --listen: for reads, and for writes.")
    ] = "512M",
    connect: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Measure between this host and that of --listen."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1, help="About how long the measurements take at most.", show_default="60"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The same as --seconds 10.")] = False,
    json_file: JsonOption = None,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Also draw them as .png, .svg or .pdf."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Measure how fast KV caches move on this machine.

    Two processes move blocks of many sizes, and the KV caches of models, by pull and push over the
    paths of one host and over TCP lanes. Contenders take turns in random order of blocks, and every
    byte is checked before it is timed.

    Lists are separated by commas. Exit status: 0 measured, 1 failed, 2 wrong options or something
    is not installed, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        return
    from llm_datadist.cli.bench import options as parsed  # noqa: PLC0415 - slow imports
    from llm_datadist.cli.bench.run import run_bench  # noqa: PLC0415

    if listen is not None:
        from llm_datadist.cli.bench.listen import run_listen  # noqa: PLC0415

        raise typer.Exit(run_listen(listen, memory))
    if preset == "list":
        typer.echo(parsed.preset_lines())
        return
    try:
        given = parsed.options(
            paths=path,
            operations=operation,
            block_sizes=block_size,
            presets=preset,
            prompts=prompt,
            tp=tp,
            vs=vs,
            limits=limits,
            connect=connect,
            seconds=seconds or (_QUICK_S if quick else _USUAL_S),
        )
    except ValueError as problem:
        typer.echo(f"error: bench: {problem}", err=True)
        raise typer.Exit(2) from None
    status = run_bench(given, json_file=json_file, plot_file=plot_file, verbose=verbose)
    if status:
        raise typer.Exit(status)
