"""Where the two ends of a comparison are: on one host, or on two that a veth pair joins.

What the processes have to know is in one environment variable, which they inherit.
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
"""The ends: the process that makes the calls, and the one that has the other memory."""

_VARIABLE = "BENCH_HOSTS"
_ADDRESSES = ("192.0.2.1", "192.0.2.2")


def _told() -> list[dict[str, str]] | None:
    text = os.environ.get(_VARIABLE)
    return json.loads(text) if text else None


def address(end: int) -> str:
    """IPv4 address of an end."""
    told = _told()
    return told[end]["address"] if told else "127.0.0.1"


def executable(end: int) -> str:
    """What starts Python on the host of an end."""
    told = _told()
    return told[end]["python"] if told else sys.executable


def prefix(end: int) -> list[str]:
    """What a command line begins with, to run on the host of an end."""
    told = _told()
    return ["ip", "netns", "exec", told[end]["name"]] if told else []


class Veth:
    """Two network namespaces joined by a veth pair, until `close`; needs root and iproute2."""

    def __init__(self) -> None:
        self._names = [f"bench-{secrets.token_hex(3)}-{end}" for end in (LOCAL, OWNER)]
        self._directory = tempfile.TemporaryDirectory()
        try:
            for name in self._names:
                _ip("netns", "add", name)
            here, there = self._names
            _ip("-n", here, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", there)
            told = [self._settle(end) for end in (LOCAL, OWNER)]
        except BaseException:
            self.close()
            raise
        os.environ[_VARIABLE] = json.dumps(told)

    def close(self) -> None:
        """Remove the namespaces, the devices with them."""
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
