"""Commands of `llm-datadist`. Each imports what it needs when it runs: `--help` must be quick."""

from typing import Annotated

import typer

import llm_datadist
from llm_datadist.cli.bench.command import bench_app
from llm_datadist.cli.demo.command import demo
from llm_datadist.cli.doctor.command import doctor
from llm_datadist.cli.inspect_command import inspect
from llm_datadist.cli.ping_command import ping

app: typer.Typer = typer.Typer(
    name="llm-datadist",
    help="Moves KV caches between the prefill and decode processes of large language models.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=True,
    pretty_exceptions_show_locals=False,
)
app.command()(demo)
app.command()(doctor)
app.command()(ping)
app.command()(inspect)
app.add_typer(bench_app)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(f"llm-datadist {llm_datadist.__version__}")
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
