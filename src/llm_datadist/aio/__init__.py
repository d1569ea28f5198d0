"""KV cache transfers for asyncio programs, with names instead of ids *(extension)*.

A `Node` is one instance, a `Peer` one link of it::

    async with Node("decode-0", directory="/run/kv/nodes") as node:
        node.register("kv", tensors)
        prefill = await node.connect("prefill-0")
        await prefill.pull("kv", src_blocks, dst_blocks)

Works with the event loops of asyncio and uvloop. Source: docs/tutorial/asyncio.md.
"""

from llm_datadist.aio.names import block_cache_key, cluster_id_of
from llm_datadist.aio.node import Node
from llm_datadist.aio.peer import Peer

__all__ = ["Node", "Peer", "block_cache_key", "cluster_id_of"]

Node.__module__ = Peer.__module__ = __name__  # as tracebacks and help name them
