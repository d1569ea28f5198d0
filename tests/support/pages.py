"""Code blocks of the pages: finds them, runs them in the order of the page, and knows what is left.

A block is a fence with a language. `python` and `sh` run, data is parsed, `text` is no code. The
title "not tested: <why>" exempts a block, "output" makes a text what the block before it prints,
and the name of a file makes it a file of that name. The comment `<!-- tested by <file> -->` above
a block names the test that runs it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import linecache
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r'(?:<!-- tested by (?P<by>\S+) -->\n)?^```(?P<language>\w+)(?: title="(?P<title>[^"]*)")?\n'
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"(?:\A|\n\n)(    [^\n]*\S[^\n]*)")
NO_CODE = {"text", "promql"}
RUN = {"python", "sh"}
QUICK = {"ping", "inspect"}
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def pages():
    """The pages of the site, and the README files."""
    return sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])


@dataclass(eq=False)
class Block:
    """One code block.

    Attributes:
        line: Line of its fence in the page, from 1.
        by: File that tests it, when its comment names one.
        ran: Whether it was run; those that need not be are taken for run.
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    by: str
    ran: bool = field(init=False)

    def __post_init__(self):
        exempt = self.by or self.title.startswith("not tested: ")
        self.ran = bool(exempt) or self.language not in RUN

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    def compiled(self):
        """Code of a Python block, in which `await` may be outside functions."""
        source = "\n" * self.line + self.text
        linecache.cache[self.place] = (len(source), None, source.splitlines(True), self.place)
        return compile(source, self.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


class Page:
    """A page, whose blocks run in order.

    Args:
        path: Its file.

    Attributes:
        blocks: All of its blocks.
        replaced: What stands in for what in the text of blocks: an address, a file, a port.
    """

    def __init__(self, path):
        text = path.read_text()
        self.name = str(path.relative_to(ROOT))
        self.text = text
        self.replaced = {}
        self.blocks = [
            Block(
                self.name,
                text.count("\n", 0, match.start("language")) + 1,
                match["language"],
                match["title"] or "",
                match["text"],
                match["by"] or "",
            )
            for match in FENCE.finditer(text)
        ]

    def left(self):
        """The blocks that must run and have not."""
        return [block for block in self.blocks if not block.ran]

    def run(self, names, *, count=1):
        """Run the next blocks of the page.

        Args:
            names: Global names of Python blocks.
            count: How many; None for the rest of the page.
        """
        for block in self.left()[:count]:
            self.run_again(block, names)

    def run_again(self, block, names):
        """Run a block, also one that has run before with other names."""
        coroutine, printed = self._started(block, names)
        if coroutine is not None:
            asyncio.run(coroutine)
        self._compare(block, printed)

    def save_programs(self, folder):
        """Save the blocks whose title is the name of a file."""
        for block in self.left():
            if block.title.endswith(".py"):
                (folder / block.title).write_text(block.text)
                block.ran = True

    async def run_async(self, names):
        """Run the next block on the event loop of the caller."""
        block = self.left()[0]
        coroutine, printed = self._started(block, names)
        if coroutine is not None:
            await coroutine
        self._compare(block, printed)

    def _started(self, block, names):
        """Run a block up to its first `await`; return its coroutine, if any, and its output."""
        block.ran = True
        text = block.text
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        printed = io.StringIO()
        if block.language == "sh":
            run_commands(text, block.place)
            return None, printed
        code = Block(block.page, block.line, "python", "", text, "").compiled()
        with contextlib.redirect_stdout(printed):
            result = eval(code, names)
        return (result if inspect.iscoroutine(result) else None), printed

    def _compare(self, block, printed):
        """Compare what a block has printed with the output that the page shows."""
        following = self.blocks[self.blocks.index(block) + 1 :][:1]
        if following and following[0].title == "output":
            shown = " ".join(following[0].text.split())
            assert " ".join(printed.getvalue().split()) == shown, (
                following[0].place,
                printed.getvalue(),
            )


def commands(text):
    """The commands of a shell block: its lines, continued ones joined, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def run_commands(text, place):
    """Run the commands of a shell block; those that take minutes are checked instead."""
    for words in commands(text):
        kind = COMMANDS.get(words[0])
        assert kind, f"{place}: a test cannot run {words[0]!r}; give the block a title that says so"
        kind(words[1:], place)


def run_llm_datadist(arguments, place):
    """Run a command of `llm-datadist`; only parse the options of those that take seconds."""
    import typer

    from llm_datadist.cli.app import app

    name, *options = arguments
    if name in QUICK:
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, f"{place}: {outcome.output}"
    else:
        typer.main.get_command(app).commands[name].make_context(name, options)


def check_make(arguments, place):
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{place}: {done.stderr}"


def check_pip(arguments, place):
    """The extras of this package that are named must exist."""
    assert arguments[0] == "install", place
    extras = re.search(
        r"^\[project\.optional-dependencies\]\n(.*?)^\[", PYPROJECT, re.DOTALL | re.MULTILINE
    )
    known = set(re.findall(r"^([\w-]+) = ", extras[1], re.MULTILINE))
    named = [
        name for word in arguments for name in re.findall(r"^(?:\.|llm-datadist)\[(.*)\]$", word)
    ]
    assert {each for name in named for each in name.split(",")} <= known, place


COMMANDS = {"llm-datadist": run_llm_datadist, "make": check_make, "pip": check_pip}


def parse(block):
    """Parse a block without running it; raises what its parser raises."""
    if block.language == "python":
        block.compiled()
    elif block.language == "sh":
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block.place}: {done.stderr}"
    elif block.language not in NO_CODE:
        PARSERS[block.language](block.text)


def parse_unit(text):
    """Lines of a systemd unit; systemd itself reads them where it is installed."""
    for line in text.splitlines():
        assert re.fullmatch(r"|#.*|\[\w+\]|[A-Za-z]+=.*", line), line
    if shutil.which("systemd-analyze"):
        with tempfile.TemporaryDirectory() as folder:
            unit = Path(folder) / "page.service"
            unit.write_text(
                re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", text, flags=re.MULTILINE)
            )
            command = ["systemd-analyze", "verify", str(unit)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def parse_yaml(text):
    yaml = pytest.importorskip("yaml")
    list(yaml.safe_load_all(text))


PARSERS = {"json": json.loads, "ini": parse_unit, "yaml": parse_yaml}
