"""One run of `llm-datadist demo`: settings from the options, report, exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from llm_datadist.cli.demo.model import ModelShape
from llm_datadist.cli.demo.plot import check_can_plot, plot
from llm_datadist.cli.demo.progress import ProgressView
from llm_datadist.cli.demo.report import print_report, to_json
from llm_datadist.cli.demo.router import Router
from llm_datadist.cli.demo.settings import DemoError, DemoSettings
from llm_datadist.cli.demo.tokenizer import VOCABULARY, cut_prompts, read_text
from llm_datadist.cli.instances import sigterm_interrupts

if TYPE_CHECKING:
    from pathlib import Path

    from llm_datadist.cli.demo.results import DemoResult

__all__ = ["run_demo"]

_USAGE = 2
_INTERRUPTED = 130


def run_demo(
    *,
    requests: int,
    prompt_tokens: int,
    prompt_file: Path | None,
    layers: int,
    plot_file: Path | None,
    json: bool,
    verbose: bool,
    **settings: Any,  # noqa: ANN401 - of DemoSettings
) -> int:
    """Run the demo, print its report, and return the exit status."""
    console = Console(stderr=json)
    try:
        if plot_file is not None:
            check_can_plot(plot_file)
        demo = DemoSettings(
            prompts=_prompts(prompt_file, requests, prompt_tokens, settings["seed"]),
            shape=ModelShape(layers=layers, vocabulary=VOCABULARY),
            **settings,
        )
        demo.check()
        with sigterm_interrupts():
            result = _run(console, demo, verbose=verbose)
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
        return _USAGE
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the processes of the demo have ended")
        return _INTERRUPTED
    return 0 if result.tokens_equal and result.residents_intact else 1


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
