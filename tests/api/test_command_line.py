"""The reference page of the command line has every option of every command, with its default."""

import re
from pathlib import Path

import pytest
import typer

from llm_datadist.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text()
SECTIONS = dict(re.findall(r"^## ([\w ]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
GROUPED = typer.main.get_command(app).commands
COMMANDS = GROUPED | {
    f"{name} {below}": command
    for name, group in GROUPED.items()
    for below, command in getattr(group, "commands", {}).items()
}
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and not option.hidden and option.name != "help"
]


def test_every_command_has_a_section():
    assert set(SECTIONS) == {*COMMANDS, "Common options", "Completion"}


@pytest.mark.parametrize(
    ("command", "option"), OPTIONS, ids=[f"{name} {option.name}" for name, option in OPTIONS]
)
def test_every_option_is_described(command, option):
    """In the section of its command, or else among the common ones."""
    texts = _texts(SECTIONS[command], option)
    if not texts and command != "demo":
        texts = _texts(SECTIONS["Common options"], option)
    assert len(texts) == 1
    if isinstance(option.default, int | float) and not isinstance(option.default, bool):
        assert f"Default {option.default:g}." in texts[0]


def _texts(section, option):
    rows = re.findall(r"^\| (`-.*?) \| (.*) \|$", section, re.MULTILINE)
    names = {f"`{name}`" for name in (*option.opts, *option.secondary_opts)}
    return [text for described, text in rows if any(name in described for name in names)]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_what_is_described_exists(command):
    described = re.findall(r"`(--[\w-]+)`(?=[^|]*\|)", SECTIONS[command])
    assert described
    options = COMMANDS[command].params
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    assert set(described) <= known
