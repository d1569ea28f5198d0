"""Two network namespaces joined by a veth pair, as the two hosts of a comparison."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

from llm_datadist.cli.bench.hosts import LOCAL, OWNER, VARIABLE

_ADDRESSES = ("192.0.2.1", "192.0.2.2")


class Namespaces(ABC):
    """Two network namespaces whose devices `eth0` are joined, until `close`."""

    def __init__(self) -> None:
        self._names = [f"bench-{secrets.token_hex(3)}-{end}" for end in (LOCAL, OWNER)]
        self._directory = tempfile.TemporaryDirectory()
        try:
            for name in self._names:
                ip("netns", "add", name)
            self.join(self._names)
            hosts = [self._settle(end) for end in (LOCAL, OWNER)]
        except BaseException:
            self.close()
            raise
        os.environ[VARIABLE] = json.dumps(hosts)

    @abstractmethod
    def join(self, names: list[str]) -> None:
        """Make the devices of both namespaces, and what joins them."""

    def close(self) -> None:
        """Remove the namespaces and their devices."""
        os.environ.pop(VARIABLE, None)
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        self._directory.cleanup()

    def _settle(self, end: int) -> dict[str, str]:
        name = self._names[end]
        ip("-n", name, "address", "add", f"{_ADDRESSES[end]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        python = Path(self._directory.name) / f"python-{end}"
        python.write_text(
            f'#!/bin/sh\nexec ip netns exec {name} {shlex.quote(sys.executable)} "$@"\n'
        )
        python.chmod(0o700)
        return {"name": name, "address": _ADDRESSES[end], "python": str(python)}


class Veth(Namespaces):
    """Two network namespaces joined by a veth pair, until `close`; needs root and iproute2."""

    def join(self, names: list[str]) -> None:
        local, owner = names
        ip("-n", local, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", owner)


def ip(*arguments: str) -> None:
    """Run `ip`; RuntimeError with what it says if it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
