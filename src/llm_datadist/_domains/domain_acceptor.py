"""Answer the members that dial this one, and handle those that leave."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, final

from llm_datadist._domains.domain import not_yet, wrong_acceptor

if TYPE_CHECKING:
    from llm_datadist._domains.book import DomainBook
    from llm_datadist._links import DomainHello, Leave, Link, Refusal

__all__ = ["DomainAcceptor"]


@final
class DomainAcceptor:
    """The domain hooks of one instance's link table.

    Args:
        cluster_id: The instance's own id.
        book: Its domains.
    """

    def __init__(self, cluster_id: int, book: DomainBook) -> None:
        self._cluster_id = cluster_id
        self._book = book

    def on_hello(self, hello: DomainHello, peer_id: int) -> Refusal | None:
        """Answer a dialer before a link is set up: None accepts."""
        with self._book.locked():
            return self._refusal(hello, peer_id)

    def on_join(self, hello: DomainHello, link: Link) -> Refusal | None:
        """Enter a link that the dialer has, or return why not."""
        with self._book.locked():
            refusal = self._refusal(hello, link.cluster_id)
            domain = self._book.named(hello.name)
            if refusal is None and domain is not None:
                domain.enter(domain.pairs[link.cluster_id], link)
            return refusal

    def on_leave(self, message: Leave, link: Link) -> bool:
        """Handle the end of a peer's part; return whether this end still needs the link."""
        with self._book.locked():
            needed = False
            for domain in self._book.all():  # also an earlier one whose name is taken by now
                if domain.name == message.name:
                    needed |= domain.on_leave(message, link.cluster_id, link)
            return needed

    def on_lost(self, link: Link) -> None:
        """Handle the end of a link."""
        with self._book.locked():
            for domain in self._book.all():
                domain.notice_losses()

    def _refusal(self, hello: DomainHello, peer_id: int) -> Refusal | None:
        domain = self._book.named(hello.name)
        if domain is not None and domain.is_related(hello, peer_id):
            return domain.refusal(hello, peer_id, time.monotonic())
        if domain is None:
            self._book.remember_unexpected(hello, peer_id)
        if domain is not None or hello.acceptor != self._cluster_id:
            return wrong_acceptor(hello, self._cluster_id)
        return not_yet(self._cluster_id, self._book.instead_of(hello.name, peer_id))
