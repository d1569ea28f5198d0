"""Command `llm-datadist demo`: options and exit status."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from llm_datadist.cli.demo.model import ModelShape
from llm_datadist.cli.demo.plot import check_can_plot, plot
from llm_datadist.cli.demo.progress import ProgressView
from llm_datadist.cli.demo.report import print_report, to_json
from llm_datadist.cli.demo.results import DemoResult
from llm_datadist.cli.demo.router import Router
from llm_datadist.cli.demo.settings import DemoError, DemoSettings
from llm_datadist.cli.demo.tokenizer import VOCABULARY, cut_prompts, read_text

_USAGE = 2
_INTERRUPTED = 130


class ModeChoice(str, Enum):
    """Modes of transfer."""

    pull = "pull"
    layerwise = "layerwise"


class BackendChoice(str, Enum):
    """Data paths."""

    auto = "auto"
    host = "host"
    tcp = "tcp"


def demo(
    mode: Annotated[
        ModeChoice,
        typer.Option(
            help="pull: decode pulls the blocks of a request after its prefill. layerwise: "
            "prefill pushes each layer while it computes on."
        ),
    ] = ModeChoice.pull,
    requests: Annotated[
        int, typer.Option("--requests", "-n", min=1, max=64, help="Requests served at once.")
    ] = 4,
    max_new_tokens: Annotated[
        int,
        typer.Option(min=2, max=512, help="Tokens per request; the first comes from the prefill."),
    ] = 16,
    prompt_tokens: Annotated[
        int,
        typer.Option(min=16, max=8192, help="Tokens of the longest prompt, if the text has them."),
    ] = 1000,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text to cut the prompts from.", show_default="a short story"
        ),
    ] = None,
    block_size: Annotated[int, typer.Option(min=1, max=1024, help="Tokens per KV block.")] = 16,
    backend: Annotated[
        BackendChoice, typer.Option(help="Data path; auto takes the best one available.")
    ] = BackendChoice.auto,
    layers: Annotated[int, typer.Option(min=1, max=64, help="Layers of the model.")] = 8,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, prompts and block ids.")
    ] = 0,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Also draw the timeline as .png, .svg or .pdf."
        ),
    ] = None,
    inject_fault: Annotated[
        bool,
        typer.Option(
            "--inject-fault",
            help="Make memory of the prefill process inaccessible under a request, and recover.",
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as one line of JSON.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every event, and the tokens.")
    ] = False,
    corrupt_block: Annotated[
        bool,
        # For the tests: a wrong block must be detected.
        typer.Option("--corrupt-block", hidden=True, help="Corrupt one block of request A."),
    ] = False,
) -> None:
    """Serve a language model with two processes, and check it against one.

    A prefill and a decode process, linked by link_clusters, run a transformer of the Llama
    architecture (random weights, byte tokens) on several prompts. The KV cache of each request
    moves, block by block, to other block ids in the decode process, which decodes greedily. Then
    one process runs the same requests, and the tokens must be equal.

    Exit status: 0 all tokens equal, 1 some differ, 2 the demo could not be run.
    """
    console = Console(stderr=json)
    try:
        if plot_file is not None:
            check_can_plot(plot_file)
        prompts = _prompts(prompt_file, requests, prompt_tokens, seed)
        settings = DemoSettings(
            prompts=prompts,
            mode=mode.value,
            backend=backend.value,
            shape=ModelShape(layers=layers, vocabulary=VOCABULARY),
            seed=seed,
            block_size=block_size,
            max_new_tokens=max_new_tokens,
            corrupt_block=corrupt_block,
            inject_fault=inject_fault,
        )
        settings.check()
        result = _run(console, settings, verbose=verbose)
        if json:
            typer.echo(to_json(result))
        else:
            print_report(console, result, verbose=verbose)
        if plot_file is not None:
            plot(result, plot_file)
            console.print(f"Timeline drawn in {escape(str(plot_file))}.", highlight=False)
    except DemoError as problem:
        text = f"[bold red]error:[/] {escape(str(problem))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        raise typer.Exit(_USAGE) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the processes of the demo have ended")
        raise typer.Exit(_INTERRUPTED) from None
    if not (result.tokens_equal and result.residents_intact):
        raise typer.Exit(1)


def _run(console: Console, settings: DemoSettings, *, verbose: bool) -> DemoResult:
    shape = settings.shape
    console.print(
        f"{len(settings.prompts)} requests, {sum(map(len, settings.prompts)):,} prompt tokens, a "
        f"model of {shape.parameters / 1e6:.1f} million weights, "
        f"{shape.kv_bytes_per_token // 1024} KiB of KV cache per token",
        highlight=False,
    )
    with ProgressView(console, settings, verbose=verbose) as view:
        return Router(settings, view).run()


def _prompts(path: Path | None, count: int, longest: int, seed: int) -> list[list[int]]:
    try:
        text = read_text(path)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise DemoError(f"--prompt-file {path}: {reason}") from problem
    return cut_prompts(text, count, longest, seed)
