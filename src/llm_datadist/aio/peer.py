"""The link of a node to another one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, final

from llm_datadist._types.named_calls import names_calls
from llm_datadist.aio.caches import live_manager
from llm_datadist.aio.names import block_cache_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llm_datadist._datadist import LLMDataDist
    from llm_datadist._engine.leases.borrower import Lease
    from llm_datadist._types import BlockList, Cache
    from llm_datadist._types.streams import After
    from llm_datadist.aio.caches import NamedCaches
    from llm_datadist.aio.calls import Calls

__all__ = ["Peer"]


@names_calls
@final
class Peer:
    """A node that this one is linked to; made by `Node.connect`.

    Methods belong to the event loop of the node. Any number of them may run at the same time.

    Attributes:
        name: Of the peer.
        cluster_id: Of the peer.
    """

    def __init__(
        self, name: str, cluster_id: int, instance: LLMDataDist, caches: NamedCaches, calls: Calls
    ) -> None:
        self.name = name
        self.cluster_id = cluster_id
        self._instance = instance
        self._caches = caches
        self._calls = calls

    def __repr__(self) -> str:
        return f"Peer(name={self.name!r}, cluster_id={self.cluster_id})"

    async def pull(
        self,
        name: str,
        src_blocks: BlockList,
        dst_blocks: BlockList,
        *,
        into: str | Cache | None = None,
        layers: range | None = None,
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Pull blocks of the peer's cache into blocks of a local one.

        The bytes are checked and moved as `CacheManager.pull_blocks` does, and this raises the
        same. When the wait is canceled (also by `asyncio.timeout`), the transfer is stopped, and
        CancelledError is raised as soon as no byte of it lands any more: within about 100 ms over
        lanes and on the same host, else by the deadline of the transfer (sync_kv_timeout). What was
        moved stays moved.

        Args:
            name: Of the peer's cache.
            src_blocks: The peer's blocks: a list, a range, or an array of integers, which must not
                change until the wait ends.
            dst_blocks: Local blocks, as many, no duplicates.
            into: Name of the local cache, or the cache itself; None = of the same name.
            layers: Layers of two tensors to pull; None = all.
            request_id: The caller's name of the request, for logs and traces: 1 to 128 printable
                characters.
            after: CUDA stream or event: nothing moves before the work that it has been given when
                this coroutine begins has ended; docs/howto/gpu-streams.md.

        Raises:
            KeyError: No local cache has that name.
            LLMException: as CacheManager.pull_blocks.
        """
        manager = live_manager(self._instance, "pull")
        # On this thread: a default stream may be that of the thread.
        awaited = manager._engine.order.awaited("pull", after)
        pull = partial(_with_request(manager.pull_blocks, request_id), after=awaited)
        await self._move(pull, name, into, src_blocks, dst_blocks, layers)

    async def push(
        self,
        name: str,
        src_blocks: BlockList,
        dst_blocks: BlockList,
        *,
        source: str | Cache | None = None,
        layers: range | None = None,
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Push blocks of a local cache into blocks of the peer's; visible there when it returns.

        Canceling and errors are as for `pull`; the bytes that stay or do not land are the peer's.

        Args:
            name: Of the peer's cache.
            src_blocks: Local blocks, as for `pull`.
            dst_blocks: The peer's blocks, as many, no duplicates.
            source: Name of the local cache, or the cache itself; None = of the same name.
            layers: Layers of two tensors to push; None = all.
            request_id: As for `pull`.
            after: As for `pull`.

        Raises:
            KeyError: No local cache has that name.
            LLMException: as CacheManager.push_blocks.
        """
        manager = live_manager(self._instance, "push")
        # On this thread: a default stream may be that of the thread.
        awaited = manager._engine.order.awaited("push", after)
        push = partial(_with_request(manager.push_blocks, request_id), after=awaited)
        await self._move(push, name, source, src_blocks, dst_blocks, layers)

    @asynccontextmanager
    async def lease(
        self, name: str, blocks: BlockList | None = None, *, ttl_ms: int = 10_000
    ) -> AsyncIterator[Lease]:
        """Lease blocks of the peer's cache for the length of an `async with` block.

        The peer sees them in `Node.leased_blocks` until then, or until the time is over.

        Args:
            name: Of the peer's cache.
            blocks: The peer's blocks; None = all.
            ttl_ms: Milliseconds until it ends by itself, by the peer's clock.

        Raises:
            LLMException: as CacheManager.lease.
        """
        key = block_cache_key(self.cluster_id, name)
        manager = live_manager(self._instance, "lease")
        lease = await self._calls.finish(
            lambda: manager.lease(key, blocks, ttl_ms=ttl_ms), lambda made: made.release()
        )
        try:
            yield lease
        finally:
            lease.release()  # does not wait

    async def _move(
        self,
        call: Callable[..., None],
        name: str,
        local: str | Cache | None,
        src_blocks: BlockList,
        dst_blocks: BlockList,
        layers: range | None,
    ) -> None:
        """Make a call of CacheManager that pulls or pushes blocks."""
        key = block_cache_key(self.cluster_id, name)
        cache = self._caches.find(name if local is None else local)
        move = partial(call, key, cache, src_blocks, dst_blocks)
        await self._calls.transfer(partial(move, src_layer_range=layers, dst_layer_range=layers))

    async def check(self) -> None:
        """Return when the peer answers; raises as LLMDataDist.check_link_status."""
        await self._calls.finish(
            lambda: self._instance.check_link_status(self.cluster_id), lambda _: None
        )

    def describe(self) -> dict[str, object]:
        """Return the facts of the link, as LLMDataDist.describe_link; does not wait."""
        return self._instance.describe_link(self.cluster_id)

    async def unlink(self) -> None:
        """End the link; no transfer of it touches memory after this returns or raises.

        Raises:
            LLMException: LLM_NOTIFY_PROMPT_UNLINK_FAILED: the peer could not be notified.
        """
        await self._calls.finish(
            lambda: self._instance.unlink_peer(self.cluster_id), lambda _: None
        )


def _with_request(call: Callable[..., None], request_id: str | None) -> Callable[..., None]:
    """Return a transfer call for a request, in the trace of the task that makes it."""
    if request_id is None:
        return call
    return partial(copy_context().run, call, request_id=request_id)
