"""Links between instances: setting up, finding, and ending them."""

from llm_datadist._links.delegate import (
    DomainHello,
    Hooks,
    LinkData,
    LinkDelegate,
    LinkResult,
    Peer,
    Refusal,
)
from llm_datadist._links.link import Link, LinkState, same_place
from llm_datadist._links.table import LinkTable

__all__ = [
    "DomainHello",
    "Hooks",
    "Link",
    "LinkData",
    "LinkDelegate",
    "LinkResult",
    "LinkState",
    "LinkTable",
    "Peer",
    "Refusal",
    "same_place",
]
