"""The tree's own checks in tools/: each passes a good tree and names what is wrong in a bad one."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "tools"
CMAKE = """
ldd_library(base SOURCES ${BASE_SOURCES})
ldd_library(memory SOURCES ${MEMORY_SOURCES} USES ldd_base)
ldd_library(host SOURCES ${HOST_SOURCES} USES ldd_memory)
ldd_library(host_near SOURCES ${HOST_NEAR_SOURCES} USES ldd_host)
ldd_library(host_far SOURCES ${HOST_FAR_SOURCES} USES ldd_host)
"""


@pytest.fixture
def tree(tmp_path):
    """Writes files into an empty repository."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def check(name, directory):
    """Run a check; what it complains about, "" when it passes."""
    result = subprocess.run(
        [sys.executable, str(TOOLS / f"{name}.py")],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == (result.stderr == ""), result
    return result.stderr


@pytest.mark.parametrize(
    ("path", "include", "complaint"),
    [
        ("host/a.cc", '"base/b.h"', ""),
        ("memory/a.cc", '"base/b.h"', ""),
        ("bind/a.cc", '"host/c.h"', ""),
        ("bind/a.cc", "<nanobind/nanobind.h>", ""),
        ("memory/a.cc", '"host/c.h"', "memory may not include host"),
        ("host/near/a.cc", '"memory/e.h"', ""),
        ("host/near/a.cc", '"host/far/f.h"', "host/near may not include host/far"),
        ("host/a.cc", '"host/far/f.h"', "host may not include host/far"),
        ("base/a.cc", '"bind/d.h"', "base may not include bind"),
        ("base/a.cc", '"b.h"', "its path from native/"),
        ("base/a.cc", '"base/missing.h"', "no such file"),
        ("host/a.cc", "<nanobind/nanobind.h>", "only native/bind"),
        ("host/a.cc", "<Python.h>", "only native/bind"),
        ("stray/a.cc", "<vector>", "no ldd_library"),
    ],
)
def test_native_includes(tree, path, include, complaint):
    headers = ("base/b.h", "host/c.h", "bind/d.h", "memory/e.h", "host/far/f.h")
    files = {f"native/{name}": "" for name in headers}
    files |= {"CMakeLists.txt": CMAKE, f"native/{path}": f"#include {include}\n"}
    found = check("check_native_includes", tree(files))
    assert complaint in found
    assert bool(found) == bool(complaint)


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("_backends/a.py", "from llm_datadist import _native", ""),
        ("_devices/a.py", "import llm_datadist._native", ""),
        ("_engine/a.py", "from llm_datadist import _native", "use the native core"),
        ("_engine/a.py", "from llm_datadist._native import Node", "use the native core"),
        ("_options/a.py", "import os; os.environ.get('A')", ""),
        ("_control/a.py", "import os; os.environ.get('A')", "only _options"),
        ("_links.py", "import os; os.getenv('A')", "only _options"),
        ("cli/a.py", "from llm_datadist import LLMConfig", ""),
        ("cli/a.py", "from llm_datadist.cli.b import c", ""),
        ("cli/a.py", "from llm_datadist._types import Cache", "public names only"),
    ],
)
def test_python_imports(tree, path, line, complaint):
    found = check("check_python_imports", tree({f"src/llm_datadist/{path}": line}))
    assert complaint in found
    assert bool(found) == bool(complaint)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("import llm_datadist.c", ""),
        ("from llm_datadist import _native", ""),
        ("from llm_datadist.a import f", "llm_datadist.a -> llm_datadist.b -> llm_datadist.a"),
        ("from . import a", "import circle"),
        ("from .a import f", "import circle"),
        ("import llm_datadist", "import circle"),
        ("if TYPE_CHECKING:\n    from llm_datadist.a import f", "import circle"),
        ("def g():\n    from llm_datadist.a import f", "import circle"),
    ],
)
def test_import_circles(tree, line, complaint):
    texts = {
        "__init__.py": "from llm_datadist.a import f\n",
        "_native.pyi": "",
        "a.py": "from llm_datadist.b import g\n",
        "b.py": f"{line}\n",
        "c.py": "",
    }
    files = {f"src/llm_datadist/{name}": text for name, text in texts.items()}
    found = check("check_import_circles", tree(files))
    assert complaint in found
    assert found.count("\n") == bool(complaint)


@pytest.mark.parametrize(
    ("path", "lines", "fails"),
    [
        ("src/a.py", 500, False),
        ("src/a.py", 501, True),
        ("native/a.cc", 501, True),
        ("tests/a.py", 600, False),
        ("tests/a.py", 601, True),
        ("Makefile", 501, True),
        ("src/a.bin", 501, False),
    ],
)
def test_file_sizes(tree, path, lines, fails):
    found = check("check_file_sizes", tree({path: "x\n" * lines}))
    assert bool(found) == fails
    assert not fails or f"{path}: {lines} lines" in found


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("src/b.py", "'''See memory/entries.h, a.py and docs/page.md 4.2.'''", ""),
        ("src/b.py", "# See src/gone.py.", "src/b.py:1: no file src/gone.py"),
        ("src/b.py", "def f():\n    '''As\n    gone.h.'''", "src/b.py:3: no file gone.h"),
        ("src/b.py", "x = 'gone.h'", ""),
        ("native/b.cc", "// As in entries.h.\n#include <vector>", ""),
        ("native/b.cc", "int a; /* As\n in bind/gone.cc */", "native/b.cc:2: no file bind/gone.cc"),
        ("docs/b.md", "[page](page.md#part), `a.py`, `fuzz_<x>.cc`, <linux/fs.h>", ""),
        ("docs/b.md", "[page](../page.md)", "the link leads to ../page.md"),
        ("docs/b.md", "Save this as `pair.py`, and run `python pair.py`.", ""),
        ("docs/b.md", "`python pair.py`", "no file pair.py"),
    ],
)
def test_named_files(tree, path, text, complaint):
    files = {"native/memory/entries.h": "", "src/a.py": "", "docs/page.md": "", path: text}
    found = check("check_named_files", tree(files))
    assert complaint in found
    assert bool(found) == bool(complaint)


TESTS = """
def test_plain(): ...
class TestGroup:
    def test_inner(self): ...
def helper(): ...
"""


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("`tests/a.py::test_plain`, `tests/a.py::TestGroup::test_inner`", ""),
        ("`tests/a.py::test_gone`", "item 1: tests/a.py::test_gone: no test test_gone"),
        ("`tests/a.py::helper`", "no test helper"),
        ("`tests/gone.py::test_plain`", "no file tests/gone.py"),
        ("`tests/a.py`", "write path::name"),
        ("", "item 1: names no test"),
        ("not implemented", "item 1: names no test"),
    ],
)
def test_conformance_table(tree, row, complaint):
    good = "`tests/a.py::test_plain`"
    rows = [row, *[good] * 61]
    table = "".join(f"| {number} | what | {tests} |\n" for number, tests in enumerate(rows, 1))
    table += f"| 62.a | a sentence | {good} |\n"
    found = check("check_conformance", tree({"docs/conformance.md": table, "tests/a.py": TESTS}))
    assert complaint in found
    assert bool(found) == bool(complaint)


def test_conformance_table_misses_an_item(tree):
    files = {
        "docs/conformance.md": "| 1 | what | `a.py::test_a` |\n",
        "a.py": "def test_a(): ...\n",
    }
    assert "item 2: no row" in check("check_conformance", tree(files))


def test_conformance_table_has_sentences_of_items(tree):
    rows = ["| 62.a | what | |\n", "| 63.a | what | `a.py::test_a` |\n"]
    found = check("check_conformance", tree({"docs/conformance.md": "".join(rows)}))
    assert "item 62.a: names no test" in found
    assert "item 63.a: not in the checklist" in found


def test_quietly_shows_the_output_of_a_failure_only(tmp_path):
    def run(code):
        return subprocess.run(
            [
                sys.executable,
                str(TOOLS / "quietly.py"),
                str(tmp_path / "logs" / "log"),
                sys.executable,
                "-c",
                f"print('noise'); raise SystemExit({code})",
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    good, bad = run(0), run(7)
    assert (good.returncode, good.stdout + good.stderr) == (0, "")
    assert bad.returncode == 1
    assert "noise" in bad.stderr
    assert "status 7" in bad.stderr
