"""The rate of TCP over loopback: an upper bound of what lanes on this host can move."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.finding import ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["tcp_rate"]

_SECONDS = 0.2
_PIECE = 1 << 20
_LEAST_GB_PER_S = 0.1


def tcp_rate(least_gb_per_s: float = _LEAST_GB_PER_S) -> Iterator[Finding]:
    """Send over one TCP connection for a moment.

    Args:
        least_gb_per_s: Rate below which something is wrong.
    """
    subject = "TCP over loopback"
    try:
        rate = _measured()
    except OSError as error:
        yield problem(
            subject,
            f"127.0.0.1 cannot be used: {error.strerror or error}",
            "bring loopback up (ip link set lo up), and let the firewall pass it",
        )
        return
    seen = f"{rate:.2g} GB/s over one connection"
    if rate < least_gb_per_s:
        yield warning(
            subject,
            f"{seen}, less than {least_gb_per_s:g}",
            "look for a CPU limit of the container, other programs on the cores, and firewall "
            "rules or tracing on loopback",
        )
    else:
        yield ok(subject, seen)


def _measured() -> float:
    """Return the rate in GB/s."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname(), timeout=5)
        receiver, _ = server.accept()
    with receiver:
        thread = threading.Thread(target=_drain, args=(receiver,), name="doctor-receiver")
        thread.start()
        sent, started, piece = 0, time.monotonic(), bytes(_PIECE)
        try:
            with sender:
                while time.monotonic() < started + _SECONDS:
                    sender.sendall(piece)
                    sent += _PIECE
        finally:
            thread.join()  # until the end of what was sent
        return sent / (time.monotonic() - started) / 1e9


def _drain(receiver: socket.socket) -> None:
    room = bytearray(_PIECE)
    with suppress(OSError):  # the sender reports it
        while receiver.recv_into(room):
            pass
