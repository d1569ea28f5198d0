"""Command `llm-datadist doctor`: options, output and exit status."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llm_datadist.cli.instances import (
    CaOption,
    CertOption,
    FirstGenerationOption,
    KeyOption,
    SecretFileOption,
    TimeoutOption,
    credentials_in_environment,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["doctor"]

_COLORS = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_STATE_WIDTH = 7
_SUBJECT_WIDTH = 18


def doctor(
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Also try to link to this peer; may be repeated."),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="IP:PORT", help="Also try to listen there; may be repeated."),
    ] = None,
    timeout: TimeoutOption = 5.0,
    first_generation: FirstGenerationOption = False,
    secret_file: SecretFileOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_ca: CaOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as one JSON object.")
    ] = False,
) -> None:
    """Find out what this machine lets instances do, and what to do about the rest.

    Each finding is ok, a warning (it costs speed or safety, or concerns some programs only) or a
    problem, and the last two come with a remedy. Secret and TLS are those of the environment, as
    instances read it.

    Exit status: 0 no problem, 1 problems.
    """
    from llm_datadist.cli.doctor.checks import all_checks, findings  # noqa: PLC0415 - slow imports

    checks = all_checks(
        listen or [], peer or [], timeout_s=timeout, first_generation=first_generation
    )
    with credentials_in_environment(secret_file, tls_cert, tls_key, tls_ca):
        found = _print_all(findings(checks), as_json=as_json)
    if any(finding.state == "problem" for finding in found):
        raise typer.Exit(1)


def _print_all(found: Iterable[Finding], *, as_json: bool) -> list[Finding]:
    """Print findings, each as soon as there is one, or all as JSON; return them."""
    if as_json:
        complete = list(found)
        typer.echo(json.dumps({"findings": [asdict(finding) for finding in complete]}))
        return complete
    from rich.console import Console  # noqa: PLC0415 - slow import

    console, shown = Console(), []
    for finding in found:
        shown.append(finding)
        console.print(_rows(finding))
    counts = {name: sum(each.state == name for each in shown) for name in _COLORS}
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()), highlight=False)
    return shown


def _rows(finding: Finding) -> Table:
    """Return the rows of one finding; columns are as wide for every finding."""
    from rich.table import Table  # noqa: PLC0415 - slow import
    from rich.text import Text  # noqa: PLC0415

    state = finding.state.value
    rows = Table.grid(padding=(0, 2, 0, 0))
    for width in (_STATE_WIDTH, _SUBJECT_WIDTH, None):
        rows.add_column(width=width)
    rows.add_row(Text(state, _COLORS[state]), Text(finding.subject, "bold"), Text(finding.seen))
    if finding.remedy:
        rows.add_row("", "", Text(f"-> {finding.remedy}"))
    return rows
