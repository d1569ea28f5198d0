"""The reference page of the command line has every option of every command, with its default."""

import re
from pathlib import Path

import pytest
import typer

from llm_datadist.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text()
SECTIONS = dict(re.findall(r"^## ([\w ]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = typer.main.get_command(app).commands
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and not option.hidden and option.name != "help"
]


def test_every_command_has_a_section():
    assert set(SECTIONS) == {*COMMANDS, "Common options"}


@pytest.mark.parametrize(
    ("command", "option"), OPTIONS, ids=[f"{name} {option.name}" for name, option in OPTIONS]
)
def test_every_option_is_described(command, option):
    """In the section of its command, or among the common ones."""
    rows = re.findall(r"^\| (`-.*?) \| (.*) \|$", SECTIONS[command], re.MULTILINE)
    if command != "demo":
        rows += re.findall(r"^\| (`-.*?) \| (.*) \|$", SECTIONS["Common options"], re.MULTILINE)
    texts = [text for names, text in rows if f"`{option.opts[0]}`" in names]
    assert len(texts) == 1
    if isinstance(option.default, int | float) and not isinstance(option.default, bool):
        assert f"Default {option.default:g}." in texts[0]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_what_is_described_exists(command):
    described = re.findall(r"`(--[\w-]+)`(?=[^|]*\|)", SECTIONS[command])
    assert described
    known = {name for option in COMMANDS[command].params for name in option.opts}
    assert set(described) <= known
