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
        self._main: Listener | None = None
        self._asked: Address | None = None
        self._extra: dict[Address, Listener] = {}
        self._warned = False

    def move(self, listen: Address | None, operation: str) -> None:
        """Listen at another address, or none; bind the new one before closing the old one.

        Raises:
            OSError: It cannot be bound; nothing has changed.
            LLMException: LLM_PARAM_INVALID: see `_check_allowed`; nothing has changed.
        """
        if listen is not None:
            self._check_allowed(listen, operation)
        old = self._main
        if listen is not None and old is not None and self._serves(listen, old):
            return
        try:
            sock = None if listen is None else listen_on(listen)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or old is None or listen is None:
                raise
            if listen[1] != old.address[1]:
                raise
            sock = self._swap(old, listen, operation)
        self._main = self._open(sock, operation)
        self._asked = listen
        if old is not None:
            self._close(old, operation)
        self._context.listen_address = self._main.address if self._main else None

    def open(self, address: Address, operation: str) -> Address:
        """Listen at a further address; return the bound one. OSError when it cannot be bound."""
        self._check_allowed(address, operation)
        listener = self._open(listen_on(address), operation)
        assert listener is not None
        self._extra[listener.address] = listener
        return listener.address

    def close(self, address: Address, operation: str) -> None:
        """Stop listening at an address that `open` returned. Idempotent."""
        listener = self._extra.pop(address, None)
        if listener is not None:
            self._close(listener, operation)

    def close_all(self) -> None:
        """Stop listening everywhere. Loop thread only."""
        for listener in (self._main, *self._extra.values()):
            if listener is not None:
                listener.close()
        self._main = None
        self._extra.clear()
        self._context.listen_address = None

    def _serves(self, listen: Address, listener: Listener) -> bool:
        return listen[1] != 0 and (listen == self._asked or same_address(listen, listener.address))

    def _swap(self, old: Listener, listen: Address, operation: str) -> socket.socket:
        """Bind an address whose port only the own listener `old` occupies."""
        self._close(old, operation)
        try:
            return listen_on(listen)
        except OSError:
            self._main = self._open(listen_on(old.address), operation)
            raise

    def _open(self, sock: socket.socket | None, operation: str) -> Listener | None:
        if sock is None:
            return None

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
