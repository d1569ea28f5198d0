"""Connect to a host by name or address, optionally from a given source address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from llm_datadist._control.sockets import (
    explained,
    plain_address,
    printed,
    resolve,
    resolve_now,
    tcp_socket,
    tune,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._control.deadline import Deadline
    from llm_datadist._control.sockets import Address
    from llm_datadist._control.workers import Workers

__all__ = ["connect", "connect_resolved"]

logger = logging.getLogger("llm_datadist")

_BIND_ADDRESS_NO_PORT: Final = 24  # IP_BIND_ADDRESS_NO_PORT of ip(7)
#: Errors of a source address that cannot reach the peer; it is then ignored.
_BAD_SOURCE: Final = frozenset(
    {errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH}
)


async def connect(
    address: Address,
    deadline: Deadline,
    resolvers: Workers,
    source: str | None = None,
    on_resolved: Callable[[], object] = lambda: None,
) -> socket.socket:
    """Return a connected socket, ready for use on this loop.

    If a name resolves to several addresses, each is tried, with an equal share of the time left.

    Args:
        address: Of the peer.
        deadline: Time limit.
        resolvers: Workers that look up names.
        source: Local ip to connect from; ignored with a warning if the peer can be reached only
            without it.
        on_resolved: Called after the name was looked up.

    Raises:
        OSError: The connection was refused, or the name or host cannot be reached.
        asyncio.TimeoutError: No answer in time.
    """
    candidates = await deadline.limit(resolve(address, resolvers))
    on_resolved()
    error: Exception = OSError(f"{printed(address)} resolves to no address")
    for place, (family, sockaddr) in enumerate(candidates):
        share = deadline.at_most(deadline.remaining() / (len(candidates) - place))
        try:
            return await share.limit(connect_resolved(family, sockaddr, source))
        except (OSError, asyncio.TimeoutError) as failure:
            error = failure
    raise error


async def connect_resolved(
    family: int, sockaddr: tuple[Any, ...], source: str | None
) -> socket.socket:
    """Connect to one socket address, as `connect` does; the caller sets the time limit."""
    if source is not None and _unspecified(source):
        source = None
    try:
        return await _attempt(family, sockaddr, source)
    except OSError as error:
        if source is None or error.errno not in _BAD_SOURCE:
            raise
        why = explained(error)
    sock = await _attempt(family, sockaddr, None)
    # Not before: if the peer cannot be reached at all, the source is not the cause.
    logger.warning(
        "local ip %s cannot be the source of a connection to %s (%s); ignored",
        source,
        printed(plain_address(sockaddr)),
        why,
    )
    return sock


async def _attempt(family: int, sockaddr: tuple[Any, ...], source: str | None) -> socket.socket:
    sock = tcp_socket(family)
    try:
        if source is not None:
            _bind(sock, source)
        await asyncio.get_running_loop().sock_connect(sock, sockaddr)
        _refuse_itself(sock)
        return tune(sock)
    except BaseException:
        sock.close()
        raise


def _refuse_itself(sock: socket.socket) -> None:
    """Raise ConnectionRefusedError when the system has connected a socket to itself.

    This happens on the local host when nothing listens at an ephemeral port. The socket is reset,
    so that the port stays free for its server.
    """
    if sock.getsockname() == sock.getpeername():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _bind(sock: socket.socket, source: str) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    try:
        # This form keeps the zone of an IPv6 address.
        [(_, own), *_] = resolve_now((source, 0), numeric=True)
        sock.bind(own)
    except (OSError, UnicodeError, TypeError) as error:  # another family, or no address
        raise OSError(errno.EADDRNOTAVAIL, f"not an address of this host: {error}") from error


def _unspecified(source: str) -> bool:
    try:
        return ipaddress.ip_address(source).is_unspecified
    except ValueError:
        return False
