"""Sockets of the control plane: options, addresses, exact reads, closing in forked children."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import os
import resource
import socket
import sys
import termios
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from llm_datadist._control.workers import Workers

__all__ = [
    "Address",
    "descriptor_share",
    "explained",
    "limit_silence",
    "listen_on",
    "plain_address",
    "printed",
    "receive_exactly",
    "resolve",
    "resolve_now",
    "tcp_socket",
    "track",
    "tune",
    "unacknowledged_bytes",
]

#: (host or ip, port)
Address: TypeAlias = tuple[str, int]
#: (family, socket address of the socket module)
Resolved: TypeAlias = tuple[int, tuple[Any, ...]]

_BACKLOG: Final = 512
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_TCP_THIN_LINEAR_TIMEOUTS: Final = 16
_TCP_RTO_MAX_MS: Final = 44  # since Linux 6.15
_RETRANSMIT_MS: Final = 1000
_SCOPE_PLACE: Final = 3  # in the socket address of IPv6

_tracked: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Close copies in a forked child, which would hide the parent's death from its peers."""
    for sock in list(_tracked):
        with contextlib.suppress(OSError):
            os.close(sock.detach())
    _tracked.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def descriptor_share(divisor: int, most: int) -> int:
    """Return a share of this process's descriptor limit, at least 1 and at most `most`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, soft // divisor))


def explained(error: OSError) -> str:
    """Return the system's text of an error, which asyncio replaces by its own."""
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"{os.strerror(errno.EMFILE)}: RLIMIT_NOFILE lets this process have {limit}; raise it "
            "(ulimit -n, LimitNOFILE=), since each link needs up to 2 x lanes_per_link + 2"
        )
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def track(sock: socket.socket) -> socket.socket:
    """Close a socket in forked children."""
    _tracked.add(sock)
    return sock


def tcp_socket(family: int) -> socket.socket:
    """Return a new TCP socket: non-blocking, closed on exec and in forked children."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return track(sock)


def tune(sock: socket.socket) -> socket.socket:
    """Set options of a connected socket: no delay, and keepalive probes.

    No delay, because messages are small and the peer waits for each. Buffer sizes are left to the
    kernel, since setting them turns its own tuning off (`native/lanes/socket.cc` tunes lanes).

    A peer that is merely stopped still answers the probes and keeps its connection.
    """
    sock.setblocking(False)
    track(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def limit_silence(sock: socket.socket, silence_ms: int) -> None:
    """Limit how long the peer's host may leave data unacknowledged; for small messages only.

    The kernel sends no keepalive probes while data is unacknowledged, so without the limit a host
    that vanished would be detected only after 15 minutes. The limit also holds for probes.

    On kernels that support it, retransmissions are at most about a second apart, so that data sent
    during a network outage arrives soon after it. By default the kernel doubles the pauses.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)
    for option, value in ((_TCP_THIN_LINEAR_TIMEOUTS, 1), (_TCP_RTO_MAX_MS, _RETRANSMIT_MS)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def unacknowledged_bytes(fd: int) -> int:
    """Return how many sent bytes of a TCP socket the peer's host has not acknowledged."""
    answer = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def resolve_now(
    address: Address, *, numeric: bool = False, passive: bool = False
) -> list[Resolved]:
    """Return the socket addresses of an address; blocks on the resolver unless `numeric`.

    Raises:
        OSError: There is none, or the address is not numeric.
    """
    flags = (socket.AI_NUMERICHOST if numeric else 0) | (socket.AI_PASSIVE if passive else 0)
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=flags)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


async def resolve(address: Address, workers: Workers) -> list[Resolved]:
    """Return the socket addresses of an address without blocking; OSError if there is none."""
    try:
        return resolve_now(address, numeric=True)
    except OSError:
        return await workers.run(resolve_now, address)


def plain_address(sockaddr: tuple[Any, ...]) -> Address:
    """Return (ip, port) of a socket address; an IPv4-mapped IPv6 address becomes IPv4.

    A link-local IPv6 address keeps its zone, without which it is unusable: `fe80::1%eth0`.
    """
    host = str(sockaddr[0])
    if len(sockaddr) > _SCOPE_PLACE and sockaddr[_SCOPE_PLACE] and "%" not in host:
        host = f"{host}%{_zone(sockaddr[_SCOPE_PLACE])}"
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            host = str(ip.ipv4_mapped)
    return host, int(sockaddr[1])


def _zone(scope_id: int) -> str:
    try:
        return socket.if_indextoname(scope_id)
    except OSError:  # the interface no longer exists
        return str(scope_id)


def printed(address: Address) -> str:
    """Return an address as text: `ip:port` or `[v6]:port`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen_on(address: Address) -> socket.socket:
    """Return a listening socket; port 0 lets the system choose.

    Raises:
        OSError: The address is in use, not of this host, or invalid.
    """
    error: OSError = OSError(f"{printed(address)} is no address")
    for family, sockaddr in resolve_now(address, passive=True):
        sock = tcp_socket(family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr)
            sock.listen(_BACKLOG)
        except OSError as failure:
            sock.close()
            error = failure
        else:
            return sock
    raise OSError(error.errno, f"cannot listen on {printed(address)}: {explained(error)}")


async def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive exactly `size` bytes of a non-blocking socket.

    Raises:
        EOFError: The peer closed before.
        OSError: The connection broke.
    """
    loop = asyncio.get_running_loop()
    data = bytearray(size)
    view = memoryview(data)
    while view:
        received = await loop.sock_recv_into(sock, view)
        if received == 0:
            raise EOFError(f"closed after {size - len(view)} of {size} bytes")
        view = view[received:]
    return bytes(data)
