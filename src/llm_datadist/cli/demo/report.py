"""Report of a run: a table of requests, a timeline and the verdict, or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from llm_datadist.cli.demo.timeline import ASCII, UNICODE, draw_timeline

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from llm_datadist.cli.demo.results import DemoResult, FaultResult, RequestResult

_MAX_WIDTH = 120
_ROOMY = 90


def to_json(result: DemoResult) -> str:
    """Return the result as one line of JSON."""
    return msgspec.json.encode(result).decode()


def print_report(console: Console, result: DemoResult, *, verbose: bool = False) -> None:
    """Print table, timeline and verdict."""
    width = min(console.width, _MAX_WIDTH)
    glyphs = UNICODE if console.encoding.lower().startswith("utf") else ASCII
    parts: list[RenderableType] = [
        Text(_title(result), "bold"),
        Text(),
        request_table(result, padding=2 if width >= _ROOMY else 1),
        Text(),
        *(() if result.fault is None else (fault_table(result.fault), Text())),
        draw_timeline(result, width, glyphs, color=console.color_system is not None),
        Text(),
        *(
            Text(tokens_line(request), "" if request.tokens_equal else "red")
            for request in result.requests
            if verbose or not request.tokens_equal
        ),
        verdict(result),
    ]
    console.print(Group(*parts), width=width, highlight=False)


def request_table(result: DemoResult, padding: int) -> Table:
    """Return the table of requests, with `padding` spaces between columns."""
    table = Table(box=None, padding=(0, padding, 0, 0), header_style="dim")
    table.add_column("\nrequest", no_wrap=True)
    for heading in (
        "prompt\ntokens",
        "KV\nMiB",
        "\nblocks",
        "prefill\nms",
        "transfer\nms",
        "after\nprefill",
        "\nGB/s",
        "first\ntoken ms",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("tokens\nequal", justify="center", no_wrap=True)
    if result.fault is not None:
        table.add_column("blocks\nlost", justify="right", no_wrap=True)
    for request in result.requests:
        lost = [] if result.fault is None else [_lost(result.fault, request.name)]
        table.add_row(
            request.name,
            f"{request.prompt_tokens:,}",
            f"{request.kv_bytes / 2**20:.2f}",
            f"{request.blocks:,}",
            f"{request.prefill_ms:,.0f}",
            f"{request.transfer_ms:.2f}",
            f"{request.exposed_ms:.2f}",
            f"{request.gb_per_s:.2f}",
            f"{request.time_to_first_token_ms:,.0f}",
            Text("yes", "green") if request.tokens_equal else Text("NO", "bold red"),
            *lost,
        )
    return table


def _lost(fault: FaultResult, request: str) -> Text:
    count = len({one.block for one in fault.named}) if request == fault.request else 0
    return Text(str(count) if count else "none", "red" if count else "dim")


def fault_table(fault: FaultResult) -> Table:
    """Return the steps of a memory fault and its repair."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("step", style="bold", no_wrap=True)
    table.add_column("what")
    places = ", ".join(
        f"block {lost.block} of tensor {lost.tensor} ({how})"
        for lost, how in zip(fault.lost, fault.how, strict=True)
    )
    blocks = ", ".join(str(block) for block in sorted({one.block for one in fault.named}))
    table.add_row("injected", f"under request {fault.request}, in the prefill process: {places}")
    table.add_row(
        "detected",
        f"pull_blocks raised {fault.status} and named blocks {blocks}; the other "
        f"{fault.arrived_blocks:,} of the call had arrived",
    )
    table.add_row("", Text(fault.text, "dim"))
    table.add_row(
        "repaired",
        f"new pages at the same addresses; remap_registered_memory took {fault.remap_ms:.2f} ms",
    )
    table.add_row(
        "recomputed",
        f"{fault.recomputed_tokens:,} tokens of those blocks in {fault.recompute_ms:,.0f} ms, and "
        "no others",
    )
    table.add_row(
        "resumed",
        f"{fault.pulled_blocks} blocks pulled in {fault.pull_ms:.2f} ms over the same link, "
        f"{fault.recovery_ms:,.0f} ms after the error",
    )
    table.add_row("others", f"got {fault.others_tokens:,} tokens meanwhile, and lost nothing")
    return table


def tokens_line(request: RequestResult) -> str:
    """Return the tokens of a request, or where they differ from the reference."""
    if request.tokens_equal:
        return f"{request.name}: {' '.join(map(str, request.tokens))}"
    pairs = zip(request.tokens, request.reference_tokens, strict=False)
    first = next((i for i, (got, wanted) in enumerate(pairs) if got != wanted), len(request.tokens))
    return (
        f"{request.name}: differs from token {first + 1} on: "
        f"{' '.join(map(str, request.tokens))}, but in one process "
        f"{' '.join(map(str, request.reference_tokens))}"
    )


def verdict(result: DemoResult) -> Text:
    """Return the verdict in a few sentences."""
    equal = sum(request.tokens_equal for request in result.requests)
    count = len(result.requests)
    new = sum(len(request.tokens) for request in result.requests)
    mebibytes = sum(request.kv_bytes for request in result.requests) / 2**20
    blocks = sum(request.blocks for request in result.requests)
    text = Text()
    if result.tokens_equal:
        text.append(f"All {new} tokens of {_requests(count)} equal", "bold green")
        text.append(" those of the same model run in one process")
        text.append(", and so does every logit, bit for bit.\n" if result.logits_equal else ".\n")
    else:
        text.append(f"The tokens of {count - equal} of {_requests(count)} differ", "bold red")
        text.append(" from those of the same model run in one process.\n")
    if result.tokens_equal and not result.logits_equal:
        if result.fault is None:
            text.append("Some logits differ, though: the caches were not the same bytes.\n", "red")
        else:
            text.append("Some logits differ in their last bits: lost blocks were recomputed.\n")
    text.append(f"{mebibytes:.1f} MiB of KV cache in {blocks:,} blocks moved to other block ids")
    text.append(f" over backend {result.backend}; ")
    if result.residents_intact:
        text.append("no other block of the decode process changed.")
    else:
        text.append("OTHER BLOCKS of the decode process CHANGED.", "bold red")
    return text


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _title(result: DemoResult) -> str:
    shape = result.model
    return (
        f"mode {result.mode}, backend {result.backend}: {shape.layers} layers, hidden "
        f"{shape.hidden}, {shape.heads} heads, {shape.kv_heads} KV heads, blocks of "
        f"{result.block_size} tokens"
    )
