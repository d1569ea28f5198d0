"""Whether the ports of instances are free, and out of reach of outgoing connections."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.finding import ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["domain_port", "listen_ports"]

_SETTINGS = Path("/proc/sys/net/ipv4")
_BASE_PORT = 60000
_BASE_PORT_VARIABLE = "HCCL_IF_BASE_PORT"


def listen_ports(addresses: list[str], settings: Path = _SETTINGS) -> Iterator[Finding]:
    """Try each address at which an instance shall listen.

    Args:
        addresses: As in listen_ip_info.
        settings: Folder of the kernel's settings of IP.
    """
    for text in addresses:
        host, _, digits = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not (digits.isascii() and digits.isdigit() and int(digits) <= 65535):
            yield problem("port", f"{text!r} is no address", "give ip:port or [v6]:port")
        else:
            yield _tried(f"port {digits}", host, int(digits), settings)


def domain_port(settings: Path = _SETTINGS) -> Iterator[Finding]:
    """Try the port at which rank-table domains begin.

    Args:
        settings: Folder of the kernel's settings of IP.
    """
    given = os.environ.get(_BASE_PORT_VARIABLE, "").strip()
    if not given:
        yield _tried("port of domains", "0.0.0.0", _BASE_PORT, settings)
    elif given.isascii() and given.isdigit() and 1024 <= int(given) <= 65520:
        yield _tried("port of domains", "0.0.0.0", int(given), settings)
    else:
        yield problem(
            "port of domains",
            f"environment variable {_BASE_PORT_VARIABLE} is {given!r}",
            "give a decimal integer in [1024, 65520], or unset it",
        )


def _tried(subject: str, host: str, port: int, settings: Path) -> Finding:
    """Bind a port for a moment, and compare it with the range of outgoing connections."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(1)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return problem(subject, f"{place} cannot be bound: {why}", _unbound(error, port))
    low, high = _range(settings)
    if low <= port <= high and not _is_reserved(port, settings):
        return warning(
            subject,
            f"{place} is free, but in the range of outgoing connections ({low} to {high}), one of "
            "which may take it",
            f"choose a port outside, or: sysctl -w net.ipv4.ip_local_reserved_ports={port}",
        )
    return ok(subject, f"{place} is free" if port else f"{place}: the system chooses a free port")


def _unbound(error: OSError, port: int) -> str:
    """Return the remedy for an address that cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return f"end the program that listens there (ss -ltnp 'sport = :{port}'), or choose another"
    if error.errno == errno.EACCES:
        return "choose a port of 1024 or more"
    return "choose an IP address of this machine (ip address)"


def _range(settings: Path) -> tuple[int, int]:
    """Return the first and last port of outgoing connections; an empty range if unknown."""
    try:
        low, high = (settings / "ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 1, 0


def _is_reserved(port: int, settings: Path) -> bool:
    """Return whether the system leaves a port to programs that ask for it."""
    try:
        text = (settings / "ip_local_reserved_ports").read_text()
        for part in filter(None, text.strip().split(",")):
            low, _, high = part.partition("-")
            if int(low) <= port <= int(high or low):
                return True
    except (OSError, ValueError):
        pass
    return False
