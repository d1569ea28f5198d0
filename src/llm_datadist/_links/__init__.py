"""Links between instances: setting up, finding, and ending them."""

from llm_datadist._links.delegate import Hooks, LinkDelegate, Refusal
from llm_datadist._links.link import Link, LinkData, LinkResult, LinkState, Peer, same_address
from llm_datadist._links.table import LinkTable
from llm_datadist._protocol.messages import DomainHello, Leave

__all__ = [
    "DomainHello",
    "Hooks",
    "Leave",
    "Link",
    "LinkData",
    "LinkDelegate",
    "LinkResult",
    "LinkState",
    "LinkTable",
    "Peer",
    "Refusal",
    "same_address",
]
