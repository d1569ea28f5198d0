"""Hosts as network namespaces, joined by veth pairs through a bridge in another namespace."""

from __future__ import annotations

import os
import secrets
import subprocess
from functools import cache


def ip(*arguments):
    """Run `ip`; RuntimeError with its output when it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Host:
    """One namespace with an IPv4, an IPv6 and a link-local IPv6 address."""

    def __init__(self, network, number):
        self.name = f"{network.name}-{number}"
        self.ip4 = f"192.0.2.{number}"
        self.ip6 = f"2001:db8::{number}"
        self.link_local = f"fe80::{number}"  # means nothing without its zone, %eth0
        #: For PeerGroup.start; `ip` replaces itself by what it runs.
        self.command_prefix = ("ip", "netns", "exec", self.name)
        ip("netns", "add", self.name)

    def join(self, bridge, number):
        """Connect to a bridge's namespace."""
        ip("-n", self.name, "link", "set", "lo", "up")
        port = f"port{number}"
        ip("-n", bridge, "link", "add", port, "type", "veth", "peer", "eth0", "netns", self.name)
        ip("-n", bridge, "link", "set", port, "master", "bridge", "up")
        ip("-n", self.name, "address", "add", f"{self.ip4}/24", "dev", "eth0")
        ip("-n", self.name, "address", "add", f"{self.ip6}/64", "dev", "eth0", "nodad")
        ip("-n", self.name, "address", "add", f"{self.link_local}/64", "dev", "eth0", "nodad")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def up(self):
        """Connect its network."""
        ip("-n", self.name, "link", "set", "eth0", "up")

    def down(self):
        """Cut its network silently: no packet leaves or arrives."""
        ip("-n", self.name, "link", "set", "eth0", "down")


class Network:
    """Some hosts that reach each other. Close it."""

    def __init__(self, count):
        self.name = f"ldd{os.getpid()}-{secrets.token_hex(2)}"
        self._bridge = f"{self.name}-bridge"
        self.hosts = []
        try:
            ip("netns", "add", self._bridge)
            ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge", "stp_state", "0")
            ip("-n", self._bridge, "link", "set", "bridge", "up")
            for number in range(1, count + 1):
                self.hosts.append(Host(self, number))
                self.hosts[-1].join(self._bridge, number)
        except BaseException:
            self.close()
            raise

    def close(self):
        """Remove the namespaces, their devices with them."""
        for name in [host.name for host in self.hosts] + [self._bridge]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@cache
def unavailable():
    """Return why network namespaces are unavailable; "" if they are available."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        Network(1).close()
    except (OSError, RuntimeError) as error:
        return f"no network namespaces here: {error}"
    return ""
