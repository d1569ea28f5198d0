"""Hosts of the two ends of a comparison: on one host, or on two that a veth pair joins.

The processes inherit the hosts in an environment variable, a JSON list of `address`, `python` (a
command that starts Python there) and `name` (of the network namespace) of each end.
"""

from __future__ import annotations

import json
import os
import sys

__all__ = ["LOCAL", "OWNER", "VARIABLE", "address", "executable", "prefix"]

LOCAL, OWNER = 0, 1
"""The ends: the process that makes the calls, and the one that holds the other memory."""

VARIABLE = "BENCH_HOSTS"


def _inherited() -> list[dict[str, str]] | None:
    text = os.environ.get(VARIABLE)
    return json.loads(text) if text else None


def address(end: int) -> str:
    """Return the IPv4 address of an end."""
    hosts = _inherited()
    return hosts[end]["address"] if hosts else "127.0.0.1"


def executable(end: int) -> str:
    """Return the command that starts Python on the host of an end."""
    hosts = _inherited()
    return hosts[end]["python"] if hosts else sys.executable


def prefix(end: int) -> list[str]:
    """Return the command prefix to run on the host of an end."""
    hosts = _inherited()
    return ["ip", "netns", "exec", hosts[end]["name"]] if hosts else []
