"""Traps that every test runs in: unexpected warnings in the log fail it, and so do leaks.

A test that provokes warnings names them: `@pytest.mark.expects_log("peer .* is gone")`. Tests of
several instances (integration, faults, netns) must leave descriptors, threads, mappings and child
processes as they found them, unless marked `leaves_resources("why")`.
"""

from __future__ import annotations

import faulthandler
import logging
import re
from pathlib import Path

import pytest

from llm_datadist.testing import leaks_since, snapshot

LEAK_CHECKED = {"integration", "faults", "netns", "conformance"}
TESTS = Path(__file__).parent

if not faulthandler.is_enabled():
    faulthandler.enable()


class _Records(logging.Handler):
    """Keeps what the package logs at WARNING and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture(autouse=True)
def unexpected_log(request):
    """Fail the test when the package warned and the test does not say that it should."""
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
def leaked_resources(request):
    """Fail the test when the process holds more after it than before."""
    kind = request.path.relative_to(TESTS).parts[0]
    if kind not in LEAK_CHECKED or request.node.get_closest_marker("leaves_resources"):
        yield
        return
    before = snapshot()
    yield
    leaks = leaks_since(before)
    if leaks:
        pytest.fail("left behind:\n" + "\n".join(leaks), pytrace=False)
