"""Whether this host's own name leads to an address that peers on other hosts can use."""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.finding import ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["LookupTooSlow", "looked_up", "own_name"]

_SECONDS = 5.0


class LookupTooSlow(OSError):
    """The name server did not answer."""


def looked_up(name: str, seconds: float = _SECONDS) -> list[str]:
    """Return the addresses of a host name, without duplicates.

    Raises:
        LookupTooSlow: There was no answer in time; the lookup goes on in a thread.
        OSError: There is no such name.
    """
    found: list[str] = []
    failed: list[OSError] = []

    def look_up() -> None:
        try:
            for *_, sockaddr in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
                found.append(str(sockaddr[0]))
        except (OSError, UnicodeError) as error:
            failed.append(error if isinstance(error, OSError) else OSError(0, str(error)))

    thread = threading.Thread(target=look_up, name="doctor-lookup", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise LookupTooSlow(0, f"the name server did not answer within {seconds:g} s")
    if failed:
        raise failed[0]
    return list(dict.fromkeys(found))


def own_name(name: str | None = None, seconds: float = _SECONDS) -> Iterator[Finding]:
    """Look this host's name up.

    Args:
        name: Of this host; None to ask the system.
        seconds: How long the lookup may take.
    """
    subject, name = "host name", socket.gethostname() if name is None else name
    use = "give instances IP addresses (listen_ip_info takes nothing else), or"
    try:
        addresses = looked_up(name, seconds)
    except LookupTooSlow as error:
        yield warning(subject, f"{name}: {error.strerror}", f"{use} correct /etc/resolv.conf")
        return
    except OSError as error:
        yield warning(
            subject,
            f"{name} cannot be resolved: {error.strerror}",
            f"{use} add it to /etc/hosts or the name server",
        )
        return
    seen = f"{name} is {', '.join(addresses)}"
    if all(_is_loopback(address) for address in addresses):
        yield warning(
            subject,
            f"{seen}: loopback, which leads peers on other hosts to themselves",
            f"{use} correct its line in /etc/hosts",
        )
    else:
        yield ok(subject, seen)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
