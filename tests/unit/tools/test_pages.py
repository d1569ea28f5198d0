"""Pages say what the sources have."""

import ast
import errno
import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
STARTS = re.compile(r"(?:Thread|Workers|ThreadPoolExecutor|ControlLoop|_RelayThread)\(")
NAME = re.compile(r'"((?:llm[-_]datadist-|demo-|doctor-|peer-|reader-)[^"]+)"')
TROUBLES = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text()
THREADS = (ROOT / "docs" / "design" / "threads.md").read_text()


def test_every_thread_with_a_name_is_on_the_page_of_threads():
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        source = path.read_text()
        if STARTS.search(source):
            names |= set(NAME.findall(source))
    for path in (ROOT / "native").rglob("*.cc"):
        names |= set(re.findall(r'pthread_setname_np\([^"]*"([^"]+)"', path.read_text()))
    shown = re.findall(r"`([^`]+)`", THREADS)
    patterns = [re.sub(r"{[^}]+}", "[A-Z]+", name) for name in names]
    assert len(names) > 12
    assert [name for name in patterns if not any(re.fullmatch(name, each) for each in shown)] == []


def texts_of(path):
    """The texts of a module: constants, and formatted ones with "..." for their values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[-\d.#]*[a-z]|{\w+}", "...", node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                each.value if isinstance(each, ast.Constant) else "..." for each in node.values
            )


def test_texts_that_a_user_looks_up_are_those_of_the_sources():
    """In the first columns of the page of troubles; "..." there stands for anything."""
    seen = re.findall(r"^\| ([^|]*) \|", TROUBLES, re.MULTILINE)
    quoted = [text for cell in seen for text in re.findall(r'"([^"]+)"', cell)]
    paths = [path for path in (ROOT / "src").rglob("*.py") if "cli" not in path.parts]
    known = "\n".join(text for path in paths for text in texts_of(path))
    known += "\n".join(map(os.strerror, errno.errorcode))
    assert len(quoted) > 50
    missing = []
    for text in quoted:
        parts = [re.escape(part) for part in re.split(r" ?\.\.\. ?", text)]
        if not re.search("[^\n]*".join(parts), known):
            missing.append(text)
    assert missing == []
