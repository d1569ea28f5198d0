"""Peers and invocations for the commands that link to a peer."""

import pytest
from typer.testing import CliRunner

from llm_datadist.cli.app import app
from support.setup import started


@pytest.fixture
def invoke():
    """Run `llm-datadist` with a command that links to a peer; a busy machine has time."""

    def run(command, *arguments):
        return CliRunner().invoke(app, [command, "--timeout", "30", *map(str, arguments)])

    return run


@pytest.fixture
def peer(monkeypatch):
    """Start instances of cluster 1 that listen; give each and its address."""
    made = []
    for name in ("SECRET", "SECRET_FILE", "TLS_CERT", "TLS_KEY", "TLS_CA"):
        monkeypatch.delenv(f"LLM_DATADIST_{name}", raising=False)

    def start(**options):
        made.append(started(1, **options))
        return made[-1], ":".join(map(str, made[-1].listen_address))

    yield start
    for instance in made:
        instance.finalize()
