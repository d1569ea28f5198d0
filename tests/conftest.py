"""Checks around every test: unexpected warnings in the log fail it, and so do leaks.

A test that provokes warnings names them: `@pytest.mark.expects_log("peer .* is gone")`. Tests of
several instances (integration, faults, hostile, ...) must leave descriptors, threads, mappings and
child processes as they found them, unless marked `leaves_resources("why")`.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from pathlib import Path

import pytest

from llm_datadist.testing import leaks_since, run_check, snapshot

LEAK_CHECKED = {"integration", "faults", "hostile", "netns", "conformance", "chaos"}
TESTS = Path(__file__).parent
CALL_FAILED = pytest.StashKey[bool]()
WORKERS_OF_INSTANCES = {
    f"{name}-worker" for name in ("llm-datadist-nixl", "llm_datadist-layers", "llm_datadist-ranks")
}
MAX_NATIVE_WORKERS = 2 + 4 + 8  # io threads, job threads, copy workers


class _Records(logging.Handler):
    """Keeps records of the package at WARNING and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def eventually():
    """Poll until a condition holds."""

    def wait(condition, seconds=5.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait


@pytest.fixture(autouse=True)
def unexpected_log(request):
    """Fail the test after a warning that it does not expect."""
    handler = _Records()
    logger = logging.getLogger("llm_datadist")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    patterns = [
        pattern
        for marker in request.node.iter_markers("expects_log")
        for pattern in marker.args or (".*",)
    ]
    unexpected = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for record in handler.records
        if not any(re.search(pattern, record.getMessage()) for pattern in patterns)
    ]
    if unexpected:
        pytest.fail("unexpected log lines:\n" + "\n".join(unexpected), pytrace=False)


@pytest.fixture(autouse=True)
def alone_on_host(monkeypatch):
    """Make tests independent of other users of this host, which make listening warn."""
    monkeypatch.setattr("llm_datadist._links.listeners.has_other_users", lambda: False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Record how the test itself ended, for checks that apply to passed tests only."""
    report = yield
    if report.when == "call":
        item.stash[CALL_FAILED] = report.failed
    return report


def _starter_backend(node):
    from llm_datadist._backends.tcp import TcpBackend

    return TcpBackend()


@pytest.fixture(scope="session")
def started_once():
    """Start the threads that a process keeps from their first use on: io threads."""
    run_check("reads", _starter_backend, "thread")


@pytest.fixture(autouse=True)
def leaked_resources(request):
    """Fail the test if the process holds more resources after it than before."""
    kind = request.path.relative_to(TESTS).parts[0]
    if kind not in LEAK_CHECKED or request.node.get_closest_marker("leaves_resources"):
        yield
        return
    request.getfixturevalue("started_once")
    before = snapshot()
    yield
    if request.node.stash.get(CALL_FAILED, True):
        return  # its traceback keeps things alive
    if leaks := _leaks_since(before, within_s=0.5) and _leaks_since(before, within_s=10):
        pytest.fail("left behind:\n" + "\n".join(leaks), pytrace=False)


def _leaks_since(before, within_s):
    """Leaks that count. A wait for them also waits for workers, which stay and do not count."""
    leaks = _without_workers(leaks_since(before, within_s))
    return [leak for leak in leaks if not _is_foreign(leak)]


def _without_workers(leaks):
    """Leave out workers, which start as there is work: the native core's, of a bounded number, and
    those of instances that live on (of a module's fixture)."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    python_threads = set(names)
    kept = [
        leak
        for leak in leaks
        if not leak.startswith("thread ") or _is_leak(names.get(int(leak.split()[1][:-1])), names)
    ]
    native_threads = len(snapshot().threads) - len(python_threads)
    if native_threads > MAX_NATIVE_WORKERS:
        kept.append(f"{native_threads} native threads, more than all workers together")
    return kept


def _is_leak(name, names):
    """Whether a thread is a leak: a Python thread, but no worker of a live instance."""
    if name is None:
        return False
    if name in WORKERS_OF_INSTANCES:
        return not any(each.startswith("llm-datadist-control-") for each in names.values())
    return not name.endswith("-worker") or name.removesuffix("-worker") not in names.values()


def _is_foreign(leak):
    """Whether another worker of pytest-xdist may have made it: all share /dev/shm."""
    return leak.startswith("shared memory ") and "PYTEST_XDIST_WORKER" in os.environ
