"""Where an instance accepts links. Sockets are bound on the caller's thread."""

from __future__ import annotations

import errno
import ipaddress
import logging
from typing import TYPE_CHECKING, final

from llm_datadist._control.listener import Doorway, Listener
from llm_datadist._control.sockets import listen_on, printed
from llm_datadist._links.link import same_place

if TYPE_CHECKING:
    import socket

    from llm_datadist._control.sockets import Address
    from llm_datadist._links.context import LinkContext

__all__ = ["Listening"]

logger = logging.getLogger("llm_datadist")


@final
class Listening:
    """The listeners of one instance. One call at a time; `LinkTable` sees to that."""

    def __init__(self, context: LinkContext, doorway: Doorway) -> None:
        self._context = context
        self._doorway = doorway
        self._main: Listener | None = None
        self._asked: Address | None = None
        self._extra: dict[Address, Listener] = {}
        self._warned = False

    def move(self, listen: Address | None, operation: str) -> None:
        """Listen at another address, or nowhere; the new one is bound before the old one is closed.

        Raises:
            OSError: It cannot be bound; everything is as before.
        """
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
        """Listen at one more address; return what was bound. OSError when it cannot be."""
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
        return listen[1] != 0 and (listen == self._asked or same_place(listen, listener.address))

    def _swap(self, old: Listener, listen: Address, operation: str) -> socket.socket:
        """Bind where only our own listener is in the way: the same port on other addresses."""
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
            return Listener(self._doorway, sock)

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

    def _warn(self, address: Address) -> None:
        context = self._context
        if self._warned or context.secret is not None or context.tls is not None:
            return
        if not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            self._warned = True
            logger.warning(
                "listening on %s without a secret: whoever can connect can link and reach the "
                "caches; set link_secret (or LLM_DATADIST_SECRET), or TLS, on all instances",
                printed(address),
            )
