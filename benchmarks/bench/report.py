"""Results as tables and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from bench.timing import Goal
    from llm_datadist.cli.bench.timing import Row


def settle(rows: list[Row], goals: list[Goal]) -> None:
    """Fill in the measured ratios."""
    found = {(row.case, row.contender): row for row in rows}
    for goal in goals:
        contender, rival = (
            found.get((goal.case, goal.contender)),
            found.get((goal.case, goal.rival)),
        )
        if contender is None or rival is None:
            continue
        if contender.unit == "GB/s":
            goal.measured = contender.median / rival.median
        else:
            goal.measured = rival.median / contender.median


def show(rows: list[Row], goals: list[Goal]) -> None:
    console = Console(width=110)
    table = Table(title="medians (least to most)")
    for column in ("case", "contender", "median", "spread"):
        table.add_column(column, justify="left" if column in {"case", "contender"} else "right")
    for row in rows:
        spread = f"{min(row.values):.2f} to {max(row.values):.2f}" if len(row.values) > 1 else ""
        table.add_row(row.case, row.contender, f"{row.median:.2f} {row.unit}", spread)
    console.print(table)
    table = Table(title="goals")
    for column in ("case", "ratio", "wanted", "measured", ""):
        table.add_column(column, justify="left" if column in {"case", "ratio"} else "right")
    for goal in goals:
        verdict = "rival absent" if not goal.measured else "ok"
        if goal.measured and goal.measured < goal.wanted:
            verdict = "short"
        table.add_row(
            goal.case,
            f"{goal.contender} : {goal.rival}",
            f"{goal.wanted:.2f}",
            f"{goal.measured:.2f}",
            verdict,
        )
    console.print(table)


def write_json(path: Path, rows: list[Row], goals: list[Goal]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    path.write_text(
        json.dumps(
            {
                "machine": {"cpu": platform.processor(), "cores": os.cpu_count()},
                "kernel": platform.release(),
                "commit": commit,
                "rows": [asdict(row) | {"median": row.median} for row in rows],
                "goals": [asdict(goal) for goal in goals],
            },
            indent=1,
        ),
        encoding="utf-8",
    )
