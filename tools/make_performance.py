"""Make the performance page of the site from the runs of `llm-datadist bench` that are stored.

    llm-datadist bench --vs nixl,mooncake --seconds 300 --json benchmarks/runs/NAME.json
    python tools/make_performance.py            write the page and its pictures (needs matplotlib)
    python tools/make_performance.py --check    fail if they are not those of the runs

The newest run is shown first, with a picture of each path; earlier ones are tables. A picture names
the digest of its run, so that a check needs no matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.bench.plan import size_text
from llm_datadist.cli.bench.results import contenders_of, read_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llm_datadist.cli.bench.results import Result, Run

RUNS = Path("benchmarks/runs")
PAGE = Path("docs/performance.md")
IMAGES = Path("docs/images")
HEAD = """# Performance

<!-- Made by tools/make_performance.py from the runs in benchmarks/runs. -->

`llm-datadist bench` has measured these figures; it measures your machines as well
([how to](howto/benchmark.md)).

* Two processes on one machine: one makes the calls, the other one has the remote memory. Contenders
  take turns in each round, and are stopped during the turns of the others. A turn begins with a
  transfer that is not timed.
* All blocks of a buffer move in one call, in random order on both sides. Every byte is checked
  before it is timed.
* Rates are medians of up to five rounds, in GB/s (10^9 bytes). Compare figures of one run only.
* What is in the time of each contender: [bench](reference/command-line.md#bench). In the run
  of 2026-11-29 NIXL made its descriptors in the time of every transfer; in later runs it prepares
  those of up to 256 pieces before, as llm-datadist registers its caches before.
* Since the run of 2026-11-30 a pull of one block takes 28% fewer instructions. p50 is 9.7 us on the
  same host (NIXL 10.9) and 33 us over TCP (NIXL 30; two plain sockets, which sleep between their
  messages, 96): medians of seven rounds of 1,000 pulls on the same machine later that day, which
  was slower by then.
"""


@dataclass(frozen=True)
class Stored:
    """A stored run.

    Attributes:
        name: Of its file, without suffix.
        run: Its figures.
        digest: Of its file.
    """

    name: str
    run: Run
    digest: str

    def image(self, path: str) -> str:
        """Return the name of the picture of a path."""
        return f"performance-{self.name}-{path}.svg"


def stored_runs() -> list[Stored]:
    """Return the stored runs, the newest first."""
    found = [
        Stored(file.stem, read_run(file), hashlib.sha256(file.read_bytes()).hexdigest()[:16])
        for file in RUNS.glob("*.json")
    ]
    return sorted(found, key=lambda each: each.run.started, reverse=True)


def page(runs: Sequence[Stored]) -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for number, stored in enumerate(runs):
        if number == 1:
            parts.append("## Earlier runs\n")
        parts += section(stored, level=3 if number else 2, pictures=not number)
    return "\n".join(parts)


def section(stored: Stored, *, level: int, pictures: bool) -> Iterator[str]:
    """Yield the parts of a run, each of which ends with a newline."""
    run, machine = stored.run, stored.run.machine
    yield f"{'#' * level} {machine.cpu}, {machine.cores} cores, {run.started[:10]}\n"
    yield (
        f"llm-datadist {run.version}, Linux {machine.kernel}, {machine.memory_bytes >> 30} GiB, "
        f"{run.seconds:.0f} s (`benchmarks/runs/{stored.name}.json`).\n"
    )
    for path in paths_of(run):
        yield f"{'#' * (level + 1)} {path}\n"
        if pictures:
            yield f"![Rates over sizes of blocks, {path}](images/{stored.image(path)})\n"
        yield from tables(run, path)
    for note in run.notes:
        yield f"* {note}\n"


def tables(run: Run, path: str) -> Iterator[str]:
    """Yield the tables of a path."""
    rows = [row for row in run.results if row.path == path]
    blocks = [row for row in rows if row.kind == "blocks"]
    if blocks:
        sizes = sorted({row.block_bytes for row in blocks})
        keys = {size: [row for row in blocks if row.block_bytes == size] for size in sizes}
        yield rates("block", {size_text(size): each for size, each in keys.items()}, blocks)
    models: dict[str, list[Result]] = {}
    for row in rows:
        if row.kind == "model":
            name = f"{row.preset}, TP {row.tp}, {row.prompt_tokens:,} tokens"
            models.setdefault(name, []).append(row)
    if models:
        yield rates("KV cache of a prompt", models, [row for row in rows if row.kind == "model"])
    latencies = [one for one in run.latencies if one.path == path]
    if latencies:
        yield table(
            ["one block of 4 KiB", "p50, us", "p99, us"],
            [[one.contender, f"{one.p50_us:.1f}", f"{one.p99_us:.1f}"] for one in latencies],
        )
    limits = [f"{one.name} {one.gbps:.2f} GB/s" for one in run.limits if one.path == path]
    if limits:
        yield f"Limit: {', '.join(limits)}.\n"


def rates(heading: str, cases: dict[str, list[Result]], rows: Sequence[Result]) -> str:
    """Return medians: a line for each case, a column for each operation and contender."""
    columns = [
        (operation, name)
        for operation in dict.fromkeys(row.operation for row in rows)
        for name in contenders_of(row for row in rows if row.operation == operation)
    ]
    lines = []
    for case, each in cases.items():
        found = {(row.operation, row.contender): row.gbps_median for row in each}
        values = (found.get(column) for column in columns)
        lines.append([case, *("-" if value is None else f"{value:.2f}" for value in values)])
    return table([heading, *(f"{operation}, {name}" for operation, name in columns)], lines)


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def paths_of(run: Run) -> list[str]:
    """Return the paths of a run in their order."""
    return list(dict.fromkeys(row.path for row in run.results))


def write(runs: Sequence[Stored]) -> None:
    """Write the page and the pictures of the newest run; remove other pictures of runs."""
    from llm_datadist.cli.bench.plot import plot  # noqa: PLC0415 - needs matplotlib

    IMAGES.mkdir(parents=True, exist_ok=True)
    for image in IMAGES.glob("performance-*.svg"):
        image.unlink()
    newest = runs[0]
    for path in paths_of(newest.run):
        plot(newest.run, IMAGES / newest.image(path), only=path, source=newest.digest)
    PAGE.write_text(page(runs), encoding="utf-8")


def problems(runs: Sequence[Stored]) -> Iterator[str]:
    """Yield what is not as the runs have it."""
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page(runs):
        yield f"{PAGE} is not that of the runs"
    newest = runs[0]
    wanted = {newest.image(path) for path in paths_of(newest.run)}
    for name in wanted ^ {image.name for image in IMAGES.glob("performance-*.svg")}:
        yield f"{IMAGES / name} is {'missing' if name in wanted else 'of no run that is shown'}"
    for name in wanted:
        image = IMAGES / name
        if image.exists() and newest.digest not in image.read_text(encoding="utf-8"):
            yield f"{image} is not that of {newest.name}.json"


def main() -> int:
    """Write or check, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    checks = parser.parse_args().check
    try:
        runs = stored_runs()
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 1
    if not runs:
        if PAGE.exists():
            print(f"{PAGE} has no runs: store one in {RUNS}", file=sys.stderr)
        return int(PAGE.exists())
    if not checks:
        write(runs)
        return 0
    found = sorted(problems(runs))
    for problem in found:
        print(f"{problem}: run 'make performance'", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
