"""Ids that belong to names: of nodes, and of their caches.

Both ends compute them, so that no message is needed to learn what a name means.
"""

from __future__ import annotations

import hashlib

from llm_datadist._types import BlocksCacheKey
from llm_datadist._types.checks import check_str
from llm_datadist._types.named_calls import names_call

__all__ = ["block_cache_key", "cluster_id_of", "cut_address"]


@names_call
def cluster_id_of(name: str) -> int:
    """Return the cluster id of the node with a name: 64 bits of its BLAKE2b hash."""
    return _hash("node", name)


@names_call
def block_cache_key(node: str | int, name: str) -> BlocksCacheKey:
    """Return the key of the cache with a name.

    Args:
        node: Name or cluster id of the node that registered the cache.
        name: The name given to `Node.register`.
    """
    cluster_id = node if isinstance(node, int) else cluster_id_of(node)
    return BlocksCacheKey(cluster_id, _hash("cache", name))


def cut_address(text: str) -> tuple[str, str]:
    """Return host and port of `host:port`; the port is "" if the text is a name."""
    host, _, port = text.rpartition(":")
    return (host, port) if host and port.isascii() and port.isdigit() else (text, "")


def _hash(kind: str, name: str) -> int:
    if not check_str("name", name):
        raise ValueError("name must not be empty")
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=f"ldd {kind}".encode())
    return int.from_bytes(digest.digest(), "little")
