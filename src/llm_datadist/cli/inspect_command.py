"""Command `llm-datadist inspect`: links to a peer, and shows the link and the peer's caches."""

from __future__ import annotations

import json
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_datadist import LLMException
from llm_datadist.cli.instances import (
    CaOption,
    CertOption,
    FirstGenerationOption,
    KeyOption,
    SecretFileOption,
    TimeoutOption,
    credentials_in_environment,
    linked,
    sigterm_interrupts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["inspect"]


def inspect(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the peer listens.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Repeat until Ctrl-C or SIGTERM, or the link ends.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.01, max=3600.0, help="Seconds between two looks of --watch.")
    ] = 1.0,
    timeout: TimeoutOption = 5.0,
    first_generation: FirstGenerationOption = False,
    secret_file: SecretFileOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    tls_ca: CaOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each look.")
    ] = False,
) -> None:
    """Link to a peer, and show the facts of the link and the caches that the peer has now.

    The caches come from the peer's directory: its interpreter takes no part in that.

    Exit status: 0 shown, 1 the peer cannot be linked or read.
    """
    with credentials_in_environment(secret_file, tls_cert, tls_key, tls_ca):
        looks = _looks(
            address,
            interval if watch else None,
            timeout_s=timeout,
            first_generation=first_generation,
        )
        try:
            with sigterm_interrupts():
                if as_json:
                    for look in looks:
                        typer.echo(json.dumps(look))
                else:
                    _show(looks)
        except (LLMException, ValueError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            return


def _looks(
    address: str, interval_s: float | None, *, timeout_s: float, first_generation: bool
) -> Iterator[dict[str, Any]]:
    """Yield link and caches; once without an interval. Raises as `linked`."""
    with linked(address, timeout_s=timeout_s, first_generation=first_generation) as made:
        instance, cluster_id, _ = made
        while True:
            yield {
                "link": instance.describe_link(cluster_id),
                "caches": instance.describe_remote_caches(cluster_id),
            }
            if interval_s is None:
                return
            sleep(interval_s)


def _show(looks: Iterator[dict[str, Any]]) -> None:
    """Print the looks; on a terminal, each in the place of the one before."""
    from rich.console import Console  # noqa: PLC0415 - slow import
    from rich.live import Live  # noqa: PLC0415

    from llm_datadist.cli.inspect_view import view  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        for look in looks:
            console.print(view(look), highlight=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        for look in looks:
            live.update(view(look), refresh=True)
