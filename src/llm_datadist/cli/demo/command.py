"""Command `llm-datadist demo`: its options."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


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
    from llm_datadist.cli.demo.run import run_demo  # noqa: PLC0415 - slow imports

    status = run_demo(
        mode=mode.value,
        requests=requests,
        max_new_tokens=max_new_tokens,
        prompt_tokens=prompt_tokens,
        prompt_file=prompt_file,
        block_size=block_size,
        backend=backend.value,
        layers=layers,
        seed=seed,
        plot_file=plot_file,
        inject_fault=inject_fault,
        json=json,
        verbose=verbose,
        corrupt_block=corrupt_block,
    )
    if status:
        raise typer.Exit(status)
