"""Options of the command line that need no demo run."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

app_module = pytest.importorskip("llm_datadist.cli.app")


def invoke(*arguments):
    return CliRunner().invoke(app_module.app, [*arguments])


def test_version():
    outcome = invoke("--version")
    assert outcome.exit_code == 0
    assert outcome.output.startswith("llm-datadist ")


@pytest.mark.parametrize("command", ["bench", "demo", "doctor", "inspect", "ping"])
def test_help(command):
    outcome = invoke(command, "--help")
    assert outcome.exit_code == 0
    assert "corrupt" not in outcome.output


@pytest.mark.parametrize(
    "options",
    [
        ("--mode", "push"),
        ("--backend", "pigeon"),
        ("--requests", "0"),
        ("--requests", "many"),
        ("--max-new-tokens", "1"),
        ("--block-size", "0"),
        ("--seed", "-1"),
        ("--layers", "65"),
        ("--unknown",),
    ],
    ids=" ".join,
)
def test_bad_options_are_named(options):
    outcome = invoke("demo", *options)
    assert outcome.exit_code == 2
    assert options[0] in outcome.output


def test_plot_without_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    outcome = invoke("demo", "--plot", str(tmp_path / "x.png"))
    assert outcome.exit_code == 2
    assert "llm-datadist[plot]" in outcome.output


@pytest.mark.parametrize(
    ("name", "problem"), [("x.bmp", "must end in"), ("none/x.png", "there is no directory")]
)
def test_plot_files_are_checked_first(tmp_path, name, problem):
    pytest.importorskip("matplotlib")
    outcome = invoke("demo", "--plot", str(tmp_path / name))
    assert outcome.exit_code == 2
    assert problem in " ".join(outcome.output.split())


def test_an_empty_prompt_file(tmp_path):
    path = tmp_path / "empty.txt"
    path.touch()
    outcome = invoke("demo", "--prompt-file", str(path))
    assert outcome.exit_code == 2
    assert "the file is empty" in " ".join(outcome.output.split())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--mode", "layerwise"), "--mode pull"),
        (("--block-size", "4"), "multiple of"),
        (("--block-size", "12"), "multiple of"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_with_a_fault(options, problem):
    outcome = invoke("demo", "--inject-fault", *options)
    assert outcome.exit_code == 2
    assert problem in " ".join(outcome.output.split())
