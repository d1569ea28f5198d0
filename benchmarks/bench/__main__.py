"""Command line of the benchmarks."""

from __future__ import annotations

import os
import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, TypeAlias

import typer

from bench import report
from bench.checksums import Checksums
from bench.encrypted import Encrypted
from bench.layouts import Layouts
from bench.links import Links
from bench.neighbor import Neighbor
from bench.networks import Networks
from bench.nixl import NixlComparison
from bench.same_host import SameHost
from bench.scale import Scale
from bench.tcp import Tcp
from bench.vllm_pairs import VllmPairs
from bench.wan import Network

Comparison: TypeAlias = (
    SameHost
    | Tcp
    | Links
    | Scale
    | Neighbor
    | Checksums
    | Encrypted
    | Layouts
    | Networks
    | NixlComparison
    | VllmPairs
)

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.callback()
def main() -> None:
    """Benchmarks of llm-datadist beside its rivals and the limits of the machine."""


@app.command("same-host")
def same_host(
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    scale: Annotated[float, typer.Option(help="Shrinks the totals (512 and 128 MiB).")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Two processes on this host, beside NIXL (if installed) and bare system calls."""
    _run(SameHost(rounds, scale), json_file)


@app.command("tcp")
def tcp(
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    scale: Annotated[float, typer.Option(help="Shrinks the totals (512 and 128 MiB).")] = 1.0,
    veth: Annotated[bool, typer.Option(help="Between two network namespaces; needs root.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """TCP lanes over loopback, beside NIXL on TCP, Mooncake and iperf3 (those installed)."""
    _run(Tcp(rounds, scale, veth=veth), json_file)


@app.command("links")
def links(
    count: Annotated[int, typer.Option(help="Links of one instance.")] = 1000,
    processes: Annotated[int, typer.Option(help="Processes of the other ends, or more.")] = 4,
    backend: Annotated[str, typer.Option(help="transfer_backend of all.")] = "tcp",
    lanes: Annotated[int, typer.Option(help="lanes_per_link of all; 1: 3 descriptors a link.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Time, memory, descriptors and idle CPU of very many links; 1,000 need 5,100 descriptors."""
    _run(Links(count, processes, backend, lanes), json_file)


@app.command("scale")
def scale(
    rounds: Annotated[int, typer.Option(help="Rounds; each shape runs once in each.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Rates over threads, links and descriptors of a call, same host and TCP."""
    _run(Scale(rounds), json_file)


@app.command("neighbor")
def neighbor(
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    scale: Annotated[float, typer.Option(help="Shrinks the total (256 MiB).")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Pulls on cores that multiply matrices meanwhile, and what they take from that."""
    _run(Neighbor(rounds, scale), json_file)


@app.command("checksums")
def checksums(
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    scale: Annotated[float, typer.Option(help="Shrinks the totals (256 and 128 MiB).")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """The option checksum beside the same transfers without it, on every path."""
    _run(Checksums(rounds, scale), json_file)


@app.command("layouts")
def layouts(
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    only: Annotated[str, typer.Option(help="Cases whose names have this in them.")] = "",
    ways: Annotated[bool, typer.Option(help="Each way to read small pieces, too.")] = False,
    torch: Annotated[bool, typer.Option(help="Whole blocks and torch, too (needs torch).")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Pulls between unequal layouts beside pulls of whole blocks."""
    _run(Layouts(rounds, only, ways=ways, torch=torch), json_file)


@app.command("networks")
def networks(
    rtt: Annotated[float, typer.Option(help="Round trip in ms.")] = 10.0,
    loss: Annotated[float, typer.Option(help="Packets lost in each direction, %.")] = 0.0,
    rate: Annotated[float, typer.Option(help="Gbit/s in each direction; 0: no limit.")] = 1.0,
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 3,
    scale: Annotated[float, typer.Option(help="Shrinks the total (256 MiB).")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Lanes over an emulated network with delay and loss; needs root and /dev/net/tun."""
    _run(Networks(rounds, scale, Network(rtt, loss, rate)), json_file)


@app.command("nixl")
def nixl(
    transport: Annotated[str, typer.Option(help="What UCX may use: tcp or shm.")] = "tcp",
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    scale: Annotated[float, typer.Option(help="Shrinks the totals (512 MiB).")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Pulls through NIXL beside bare NIXL (needs nixl-cu12)."""
    _run(NixlComparison(rounds, scale, transport), json_file)


@app.command("encrypted")
def encrypted(
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    scale: Annotated[float, typer.Option(help="Shrinks the totals (512 and 128 MiB).")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Lanes over loopback, plain and inside TLS; needs the openssl command for a certificate."""
    _run(Encrypted(rounds, scale), json_file)


@app.command("vllm")
def vllm(
    rounds: Annotated[int, typer.Option(help="Rounds; each contender runs once in each.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Prefill and decode engines of stock vLLM with this and other connectors (needs vLLM)."""
    _run(VllmPairs(rounds), json_file)


def _run(comparison: Comparison, json_file: Path | None) -> None:
    try:
        comparison.run()
    finally:
        comparison.close()
    report.settle(comparison.rows, comparison.goals)
    report.show(comparison.rows, comparison.goals)
    if json_file is not None:
        report.write_json(json_file, comparison.rows, comparison.goals)
    sys.stdout.flush()
    os._exit(0)  # libraries of NIXL's wheel crash in their destructors


if __name__ == "__main__":
    app()
