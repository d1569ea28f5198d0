"""One peer: its name, the way to it, whether it lets this machine link, and by which path."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from llm_datadist import LLMException
from llm_datadist.cli.doctor.finding import ok, problem, split_remedy, warning
from llm_datadist.cli.doctor.names import looked_up
from llm_datadist.cli.instances import linked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["peer"]


def peer(
    address: str, *, timeout_s: float = 5.0, first_generation: bool = False
) -> Iterator[Finding]:
    """Look a peer's name up, connect, link; stop at the first step that fails.

    Args:
        address: `ip:port`, `[v6]:port` or `host:port`.
        timeout_s: Limit of each step.
        first_generation: Whether the peer is in first-generation mode.
    """
    name, _, digits = address.rpartition(":")
    name = name.removeprefix("[").removesuffix("]")
    if not name or not (digits.isascii() and digits.isdigit() and 0 < int(digits) <= 65535):
        yield problem("peer", f"{address!r} is no address", "give ip:port, [v6]:port or host:port")
        return
    found, finding = _named(name, timeout_s)
    yield finding
    if not found:
        return
    reached = _reached(found, int(digits), timeout_s)
    yield reached
    if reached.remedy:
        return
    try:
        with linked(address, timeout_s=timeout_s, first_generation=first_generation) as made:
            instance, cluster_id, _ = made
            yield _path(instance.describe_link(cluster_id), is_local=any(map(_is_local, found)))
            started = time.monotonic()
            instance.check_link_status(cluster_id)
            took_ms = (time.monotonic() - started) * 1000
            yield ok("peer's answer", f"cluster {cluster_id} answers in {took_ms:.2f} ms")
    except LLMException as error:
        seen, remedy = split_remedy(str(error), "see the logs of both sides")
        yield problem("peer's link", seen, remedy)


def _named(name: str, seconds: float) -> tuple[list[str], Finding]:
    subject = "peer's name"
    try:
        found = looked_up(name, seconds)
    except OSError as error:
        seen = f"{name} cannot be resolved: {error.strerror}"
        remedy = "correct the name, /etc/hosts or the name server, or give an IP address"
        return [], problem(subject, seen, remedy)
    return found, ok(subject, f"{name} is {', '.join(found)}" if found != [name] else name)


def _reached(addresses: list[str], port: int, seconds: float) -> Finding:
    """Connect to the first of several addresses that accepts."""
    subject, seen, remedy = "peer's port", "", ""
    for address in addresses:
        started = time.monotonic()
        try:
            with socket.create_connection((address, port), seconds):
                took_ms = (time.monotonic() - started) * 1000
                return ok(subject, f"{address} port {port} accepts, in {took_ms:.2f} ms")
        except TimeoutError:
            seen = f"no answer from {address} port {port} within {seconds:g} s"
            remedy = "the host is down or a firewall drops packets: check address, host, firewall"
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            seen = f"{address} port {port}: {why}"
            remedy = (
                "start the peer, and check that it listens at this address (its listen_address)"
            )
    return problem(subject, seen, remedy)


def _path(facts: dict[str, Any], *, is_local: bool) -> Finding:
    """Judge the data path of a link."""
    subject, path, why = "peer's path", facts["backend"]["host"], facts["why"]
    reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items())
    seen = f"linked to cluster {facts['cluster_id']}, blocks move over {path} ({reasons})"
    if path == "tcp" and is_local:
        return warning(subject, seen, "see the finding about same-host reads, and run as one user")
    return ok(subject, seen)


def _is_local(address: str) -> bool:
    """Return whether an address is of this machine."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True
