"""Completion in the shell, and the command line as a module."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import llm_datadist
from llm_datadist.cli.app import app


def asked(**environ):
    """Return what the script of a shell gets from the program."""
    outcome = CliRunner().invoke(app, [], env=environ, prog_name="llm-datadist")
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell):
    script = asked(_LLM_DATADIST_COMPLETE=f"source_{shell}")
    assert f"_LLM_DATADIST_COMPLETE=complete_{shell}" in script
    if shell == "bash":
        shown = subprocess.run(
            ["bash", "-c", f"{script}\ncomplete -p llm-datadist"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "_llm_datadist_completion llm-datadist" in shown.stdout


def test_commands_are_completed():
    words = {"COMP_WORDS": "llm-datadist i", "COMP_CWORD": "1"}
    assert asked(_LLM_DATADIST_COMPLETE="complete_bash", **words).split() == ["inspect"]


def test_options_are_completed():
    words = {"COMP_WORDS": "llm-datadist doctor --pe", "COMP_CWORD": "2"}
    assert asked(_LLM_DATADIST_COMPLETE="complete_bash", **words).split() == ["--peer"]


@pytest.mark.slow
def test_the_package_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "llm_datadist", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"llm-datadist {llm_datadist.__version__}\n"
