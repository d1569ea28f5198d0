"""Log lines under a lock reach their handlers when it is free; tools find those that would not."""

from __future__ import annotations

import ast
import logging
import threading
from pathlib import Path

import pytest

from llm_datadist._logs import later

logger = logging.getLogger("llm_datadist")
SOURCE = Path(__file__).parents[2] / "src/llm_datadist"
LOCKS = ("lock", "_changing", "_linking", "_changed", "_submitting")
LEVELS = {"debug", "info", "warning", "error", "exception", "log"}


@pytest.fixture
def told():
    """(line, whether the lock was free) of each record, in order."""
    lock, lines = threading.Lock(), []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append((record.getMessage(), not lock.locked()))

    handler = Handler(logging.DEBUG)
    logger.addHandler(handler)
    yield lock, lines
    logger.removeHandler(handler)


@pytest.mark.expects_log
def test_lines_come_in_order_when_the_lock_is_free(told):
    lock, lines = told
    with later(), lock:
        logger.warning("one %d", 1)
        with later():
            logger.warning("two")
        assert not lines
    logger.warning("three")
    assert lines == [("one 1", True), ("two", True), ("three", True)]


@pytest.mark.expects_log
def test_lines_come_when_the_block_raises(told):
    lock, lines = told
    with pytest.raises(ZeroDivisionError), later(), lock:
        logger.warning("one")
        raise ZeroDivisionError
    assert lines == [("one", True)]


@pytest.mark.expects_log
def test_other_threads_do_not_wait(told):
    _, lines = told
    with later():
        thread = threading.Thread(target=logger.warning, args=("elsewhere",))
        thread.start()
        thread.join()
        assert lines == [("elsewhere", True)]


def is_lock(node):
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name.endswith(LOCKS)


def is_later(node):
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "later"


def calls(node):
    """(receiver, name) of every call in a node."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            func = each.func
            if isinstance(func, ast.Attribute):
                yield getattr(func.value, "id", getattr(func.value, "attr", "")), func.attr
            elif isinstance(func, ast.Name):
                yield "", func.id


def logs(node, functions, seen=frozenset()):
    """Whether a node logs, itself or through functions of its module."""
    for receiver, name in calls(node):
        if receiver in {"logger", "_log"} and name in LEVELS:
            return True
        known = functions.get(name)
        own = receiver in {"", "self"} and known is not None and name not in seen
        if own and logs(known, functions, seen | {name}):
            return True
    return False


def under_locks(path):
    """Lines of a module at which a lock is held while something is logged at once."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {
        each.name: each
        for each in ast.walk(tree)
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for each in ast.walk(tree):
        if isinstance(each, ast.With):
            held = [item.context_expr for item in each.items]
            locks = any(map(is_lock, held)) and not any(map(is_later, held))
            if locks and any(logs(line, functions) for line in each.body):
                yield f"{path.relative_to(SOURCE)}:{each.lineno}"


def test_nothing_is_logged_under_a_lock():
    found = [place for path in sorted(SOURCE.rglob("*.py")) for place in under_locks(path)]
    assert not found, "write `with later(), lock:`"


def test_the_search_finds_what_is_logged_through_functions(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text(
        "class A:\n"
        "    def f(self):\n"
        "        with self._lock:\n"
        "            self.g()\n"
        "    def g(self):\n"
        "        h()\n"
        "    def k(self):\n"
        "        with later(), self._lock:\n"
        "            self.g()\n"
        "def h():\n"
        "    logger.info('x')\n"
    )
    assert list(under_locks(bad)) == ["bad.py:3"]
