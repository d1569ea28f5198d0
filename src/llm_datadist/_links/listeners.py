"""The listeners of an instance. Sockets are bound on the caller's thread."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.listener import ConnectionRouter, Listener
from llm_datadist._control.sockets import listen_on, printed
from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._links.link import same_address

if TYPE_CHECKING:
    import socket

    from llm_datadist._control.sockets import Address
    from llm_datadist._links.context import LinkContext

__all__ = ["Listeners", "has_other_users"]

logger = logging.getLogger("llm_datadist")

_FIRST_USER: Final = 1000
"""Smaller user ids belong to system services."""


@final
class Listeners:
    """The listeners of one instance. One call at a time: `LinkTable` holds a lock."""

    def __init__(self, context: LinkContext, router: ConnectionRouter) -> None:
        self._context = context
        self._router = router
        #: The addresses of the options, as they were given, and their listeners.
        self._main: list[tuple[Address, Listener]] = []
        self._extra: dict[Address, Listener] = {}
        self._warned = False

    def move(self, operation: str, listen: Address | None, *more: Address) -> None:
        """Listen at other addresses, or none; bind the new ones before closing the old ones.

        Raises:
            OSError: One of them cannot be bound; nothing has changed.
            LLMException: LLM_PARAM_INVALID: see `_check_allowed`; nothing has changed.
        """
        wanted = [] if listen is None else [listen, *more]
        for address in wanted:
            self._check_allowed(address, operation)
        leaving = list(self._main)
        serving: list[tuple[Address, Listener]] = []
        opened: list[Listener] = []
        try:
            for address in wanted:
                old = next((item for item in leaving if _serves(address, *item)), None)
                if old is not None:
                    leaving.remove(old)
                    serving.append((address, old[1]))
                else:
                    opened.append(self._open(self._bind(address, leaving, operation), operation))
                    serving.append((address, opened[-1]))
        except BaseException:
            for listener in opened:
                self._close(listener, operation)
            self._main = [self._reopened(*item, operation) for item in self._main]
            raise
        for _, listener in leaving:
            self._close(listener, operation)
        self._main = serving
        self._context.listen_address = serving[0][1].address if serving else None

    def _bind(
        self, address: Address, leaving: list[tuple[Address, Listener]], operation: str
    ) -> socket.socket:
        """Bind an address; first close a listener that is being replaced if it holds the port."""
        try:
            return listen_on(address)
        except OSError as error:
            same_port = [listener for _, listener in leaving if listener.address[1] == address[1]]
            if error.errno != errno.EADDRINUSE or not same_port:
                raise
        for listener in same_port:
            self._close(listener, operation)
        return listen_on(address)

    def _reopened(
        self, asked: Address, listener: Listener, operation: str
    ) -> tuple[Address, Listener]:
        """Return a listener again, or a new one in its place if it was closed."""
        if listener.is_open:
            return asked, listener
        return asked, self._open(listen_on(listener.address), operation)

    def open(self, address: Address, operation: str) -> Address:
        """Listen at a further address; return the bound one. OSError when it cannot be bound."""
        self._check_allowed(address, operation)
        listener = self._open(listen_on(address), operation)
        self._extra[listener.address] = listener
        return listener.address

    def close(self, address: Address, operation: str) -> None:
        """Stop listening at an address that `open` returned. Idempotent."""
        listener = self._extra.pop(address, None)
        if listener is not None:
            self._close(listener, operation)

    def close_all(self) -> None:
        """Stop listening everywhere. Loop thread only."""
        for listener in (*(listener for _, listener in self._main), *self._extra.values()):
            listener.close()
        self._main.clear()
        self._extra.clear()
        self._context.listen_address = None

    def _open(self, sock: socket.socket, operation: str) -> Listener:
        async def start() -> Listener:
            return Listener(self._router, sock)

        try:
            listener = self._context.control.run(start(), operation)
        except BaseException:
            sock.close()
            raise
        self._warn(listener.address)
        return listener

    def _close(self, listener: Listener, operation: str) -> None:
        async def stop() -> None:
            listener.close()

        self._context.control.run(stop(), operation)

    def _is_anonymous(self) -> bool:
        return self._context.secret is None and self._context.tls is None

    def _check_allowed(self, address: Address, operation: str) -> None:
        """Raise LLM_PARAM_INVALID if strangers, who may not link, would be able to."""
        if self._context.allow_anonymous is False and self._is_anonymous():
            raise fail(
                LLMStatusCode.LLM_PARAM_INVALID,
                operation,
                f"option llm.AllowAnonymous is 0, and listening on {printed(address)} without a "
                "secret and without TLS would let every process that can connect link",
                "set link_secret (or LLM_DATADIST_SECRET), or TLS, on all instances",
            )

    def _warn(self, address: Address) -> None:
        if self._warned or not self._is_anonymous() or self._context.allow_anonymous is not None:
            return
        if not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            who = "every process that can connect"
        elif has_other_users():
            who = "every process on this host, those of other users as well,"
        else:
            return
        self._warned = True
        logger.warning(
            "listening on %s without a secret: %s can link and reach the caches; set link_secret "
            "(or LLM_DATADIST_SECRET), or TLS, on all instances, or set llm.AllowAnonymous to 1",
            printed(address),
            who,
        )


def _serves(wanted: Address, asked: Address, listener: Listener) -> bool:
    """Return whether a listener, which was opened for `asked`, is the one for an address."""
    return wanted[1] != 0 and (wanted == asked or same_address(wanted, listener.address))


def has_other_users() -> bool:
    """Return whether /proc shows processes of another user on this host.

    Users have ids from 1000; smaller ids belong to system services.
    """
    own = os.geteuid()
    try:
        with os.scandir("/proc") as found:
            names = [each for each in found if each.name.isdigit()]
    except OSError:
        return False
    return any(_owner(each) not in {None, own} for each in names)


def _owner(process: os.DirEntry[str]) -> int | None:
    """Return the user of a process; None for a system service, or if it has ended."""
    try:
        owner = process.stat().st_uid
    except OSError:
        return None
    return owner if owner >= _FIRST_USER else None
