"""Runs of `llm-datadist bench`: figures, rivals that fail, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llm_datadist.cli.bench.contender import Contender, serve

TINY = ("--path", "same-host", "--block-size", "4K", "--seconds", "1", "--no-limits")


def own_nothing(pipe, memory):
    pipe.send({})
    serve(pipe, memory)


class Broken(Contender):
    """Moves nothing."""

    name = "broken"

    @staticmethod
    def owner_body():
        return own_nothing

    def prepare(self, case):
        pass

    def read(self, case):
        pass


def invoke(*arguments):
    from typer.testing import CliRunner  # the processes of a run import this module, but need none

    from llm_datadist.cli.app import app

    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.mark.slow
def test_a_run_with_a_rival_that_moves_wrong_bytes(monkeypatch, tmp_path):
    from llm_datadist.cli.bench.paths import PATHS

    path = replace(PATHS["same-host"], rivals={"nixl": Broken})
    monkeypatch.setitem(PATHS, "same-host", path)
    monkeypatch.setattr("llm_datadist.cli.bench.run.check_installed", lambda _rival: None)
    file = tmp_path / "run.json"
    outcome = invoke(*TINY, "--operation", "pull", "--vs", "nixl", "--json", file)
    assert outcome.exit_code == 0, outcome.output
    assert "same-host: pull 4 KiB: llm-datadist " in outcome.stderr
    assert "s left] " in outcome.stderr
    assert "same-host, pull, GB/s by size of blocks" in outcome.stdout
    found = json.loads(file.read_text())
    rows = {(row["operation"], row["contender"]): row for row in found["results"]}
    assert rows["pull", "llm-datadist"]["gbps_median"] > 0
    assert rows["pull", "broken"]["problem"] == "broken: prepare: pull 4 KiB: wrong bytes"
    assert [one["contender"] for one in found["latencies"]] == ["llm-datadist", "broken"]


def processes_of(session):
    """Return the processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def _take_ctrl_c():
    """Programs that are started in the background of a shell ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(eventually):
    command = [sys.executable, "-m", "llm_datadist.cli", "bench", *TINY]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_take_ctrl_c,  # noqa: PLW1509  # calls nothing that may be locked
    ) as run:
        try:
            assert b"s left] same-host" in run.stderr.readline()
            os.killpg(run.pid, signal.SIGINT)
            _, errors = run.communicate(timeout=20)
        finally:
            run.kill()
    assert run.returncode == 130
    assert b"interrupted" in errors
    assert b"Traceback" not in errors
    eventually(lambda: not processes_of(run.pid))


@pytest.mark.slow
def test_a_path_that_cannot_be_used_is_said():
    from support.setup import run_program

    program = (
        "from llm_datadist.cli import main\n"
        "from support.restricted import deny_reads\n"
        "deny_reads(1)\nmain()"
    )
    done = run_program(program, "bench", *TINY, "--operation", "pull")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "same-host: blocks move over tcp, because " in words


class Absent(Broken):
    """Cannot be made."""

    name = "absent"

    def __init__(self, _local):
        raise OSError("libother.so: cannot open shared object file")


@pytest.mark.slow
def test_a_library_that_cannot_be_loaded_is_an_error_with_the_remedy(monkeypatch):
    from llm_datadist.cli.bench.paths import PATHS

    path = replace(PATHS["same-host"], rivals={"nixl": Absent})
    monkeypatch.setitem(PATHS, "same-host", path)
    monkeypatch.setattr("llm_datadist.cli.bench.run.check_installed", lambda _rival: None)
    outcome = invoke(*TINY, "--vs", "nixl")
    assert outcome.exit_code == 1
    assert "--vs nixl: absent: libother.so: cannot open" in outcome.stderr
    assert "pip install --no-deps nixl-cu12 (it needs no GPU), or leave it out" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--path", "udp"), "--path udp: unknown"),
        (("--json", "/no-such-directory/x"), "there is no directory /no-such-directory"),
        (("--plot", "/no-such-directory/x.svg"), "--plot"),
        (("--preset", "llama-3.1-405b", "--tp", "1", "--prompt", "1024k"), "give a shorter"),
    ],
)
def test_what_cannot_be_measured_is_said_before(options, text):
    outcome = invoke(*options)
    assert outcome.exit_code == 2
    assert text in outcome.stderr


def test_a_library_that_is_not_installed_is_said_before(monkeypatch):
    monkeypatch.setattr("llm_datadist.cli.bench.paths.find_spec", lambda _name: None)
    outcome = invoke("--vs", "mooncake")
    assert outcome.exit_code == 2
    assert "pip install --no-deps mooncake-transfer-engine-non-cuda" in outcome.stderr


def test_presets_are_listed():
    outcome = invoke("--preset", "list")
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("llama-3.1-8b ")
