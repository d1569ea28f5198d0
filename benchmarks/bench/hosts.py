"""Hosts of the two ends of a comparison: on one host, or on two that a veth pair joins.

The processes inherit the hosts in an environment variable.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

LOCAL, OWNER = 0, 1
"""The ends: the process that makes the calls, and the one that holds the other memory."""

_VARIABLE = "BENCH_HOSTS"
_ADDRESSES = ("192.0.2.1", "192.0.2.2")


def _inherited() -> list[dict[str, str]] | None:
    text = os.environ.get(_VARIABLE)
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


class Veth:
    """Two network namespaces joined by a veth pair, until `close`; needs root and iproute2."""

    def __init__(self) -> None:
        self._names = [f"bench-{secrets.token_hex(3)}-{end}" for end in (LOCAL, OWNER)]
        self._directory = tempfile.TemporaryDirectory()
        try:
            for name in self._names:
                _ip("netns", "add", name)
            local, owner = self._names
            _ip("-n", local, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", owner)
            hosts = [self._settle(end) for end in (LOCAL, OWNER)]
        except BaseException:
            self.close()
            raise
        os.environ[_VARIABLE] = json.dumps(hosts)

    def close(self) -> None:
        """Remove the namespaces and their devices."""
        os.environ.pop(_VARIABLE, None)
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        self._directory.cleanup()

    def _settle(self, end: int) -> dict[str, str]:
        name = self._names[end]
        _ip("-n", name, "address", "add", f"{_ADDRESSES[end]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        python = Path(self._directory.name) / f"python-{end}"
        python.write_text(
            f'#!/bin/sh\nexec ip netns exec {name} {shlex.quote(sys.executable)} "$@"\n'
        )
        python.chmod(0o700)
        return {"name": name, "address": _ADDRESSES[end], "python": str(python)}


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
