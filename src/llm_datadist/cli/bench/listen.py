"""The offering end of a benchmark between hosts: `llm-datadist bench --listen`."""

from __future__ import annotations

import threading

import typer

from llm_datadist.cli.bench.ending import exit_status
from llm_datadist.cli.bench.plan import check_memory, parse_size
from llm_datadist.cli.bench.remote import offering
from llm_datadist.cli.bench.work import MIB

__all__ = ["run_listen"]

_LEAST_BYTES = 64 * MIB
_ANY = ("0.0.0.0", "::")


def run_listen(listen: str, memory: str) -> int:
    """Offer buffers until Ctrl-C or SIGTERM, and return the exit status."""
    with exit_status(verbose=True) as outcome:  # warnings about strangers are of use here
        size = _memory(memory)
        check_memory(2 * size, "give a smaller --memory")
        with offering(listen, size) as instance:
            host, port = instance.listen_address or ("", 0)
            shown = "HOST" if host in _ANY else host
            typer.echo(
                f"listening at {host}:{port}, with {size // MIB} MiB for reads and as much for "
                "writes, until Ctrl-C; on the other host run\n"
                f"  llm-datadist bench --connect {shown}:{port}"
            )
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                typer.echo("ended", err=True)
    return outcome.status


def _memory(text: str) -> int:
    size = parse_size(text)
    if size < _LEAST_BYTES or size % MIB:
        raise ValueError(f"--memory {text}: give whole MiB, {_LEAST_BYTES // MIB}M at least")
    return size
