"""Commands of `llm-datadist`."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from llm_datadist.cli.demo.command import demo
from llm_datadist.cli.doctor import doctor

app = typer.Typer(
    name="llm-datadist",
    help="Moves KV caches between the prefill and decode processes of large language models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(demo)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(f"llm-datadist {version('llm-datadist')}")
    except PackageNotFoundError:
        typer.echo("llm-datadist (not installed)")
    raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of llm-datadist itself."""
