"""One instance, for asyncio programs."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.backoff import Backoff
from llm_datadist._datadist import LLMDataDist
from llm_datadist._errors import LLMException, LLMStatusCode, fail
from llm_datadist._options import LLMConfig
from llm_datadist._types import LLMRole
from llm_datadist._types.checks import check_instance, check_str
from llm_datadist._types.named_calls import names_calls
from llm_datadist.aio.caches import NamedCaches, live_manager
from llm_datadist.aio.calls import Calls, until_done
from llm_datadist.aio.directory import FileDirectory
from llm_datadist.aio.names import block_cache_key, cluster_id_of, cut_address
from llm_datadist.aio.peer import Peer
from llm_datadist.aio.table import OwnTable, PeerTable

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    from llm_datadist._types import Cache

__all__ = ["Node"]

logger: logging.Logger = logging.getLogger("llm_datadist")

_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5
_DIAL_MS: Final = 3000
_RETRIED: Final = {
    LLMStatusCode.LLM_LINK_FAILED,
    LLMStatusCode.LLM_TIMEOUT,
    LLMStatusCode.LLM_PROCESSING_LINK,
}
_WILDCARDS: Final = {"0.0.0.0", "::"}


@names_calls
@final
class Node:
    """An instance with a name, its caches, and its links to peers; an async context manager.

    The constructor initializes the instance, and announces it in the directory. Coroutines belong
    to one event loop; all other methods may be called on any thread.

    Args:
        name: Unique among the nodes that link; the cluster id is computed from it.
        listen: `ip:port` where peers connect, port 0 chooses one; None = this node only connects.
        directory: Where nodes find the addresses of others: a file, or `host:port` of a node that
            has the directory in its memory; None = peers are named by their address.
        keeps_directory: Have the directory in the memory of this node; other nodes give its
            address as their `directory`.
        advertise: `host:port`, or host, by which peers reach this node; None = the address that it
            listens at, which then must not be a wildcard.
        config: Further options; None = those of the environment. A copy is used.
        max_calls: Transfers that run at the same time; more wait for their turn.

    Raises:
        TypeError, ValueError, LLMException: as LLMDataDist.init; ValueError also for a max_calls
            below 1, a file that is no directory of nodes, an address that no peer can use, and a
            directory that no peer could reach.
        OSError: The file of the directory cannot be written, or other users can write it.
    No instance is left then.
    Source: docs/tutorial/asyncio.md.
    """

    def __init__(
        self,
        name: str,
        listen: str | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        keeps_directory: bool = False,
        advertise: str | None = None,
        config: LLMConfig | None = None,
        max_calls: int = 16,
    ) -> None:
        self._name = name
        given = LLMConfig() if config is None else check_instance("config", config, LLMConfig)
        options = copy.copy(given)
        options.enable_cache_manager = True
        if listen is not None:
            options.listen_ip_info = check_str("listen", listen)
        if keeps_directory and directory is not None:
            raise ValueError("directory and keeps_directory exclude each other; give one of them")
        if keeps_directory and options.listen_ip_info is None:
            raise ValueError(
                "keeps_directory is set without listen, so that no node could read the directory; "
                "give listen"
            )
        if advertise is not None:
            _check_reachable("advertise", check_str("advertise", advertise))
        elif keeps_directory or directory is not None:
            _check_reachable("listen", options.listen_ip_info)
        self._caches = NamedCaches()
        self._calls = Calls(name, max_calls)
        self._connecting: dict[str, asyncio.Lock] = {}
        self._instance = LLMDataDist(LLMRole.MIX, cluster_id_of(name))
        self._instance.init(options.generate_options())
        self._announced: str | None = None
        self._directory: FileDirectory | OwnTable | PeerTable | None = None
        try:
            self._directory = self._found(directory)
            if keeps_directory:
                self._directory = OwnTable(self._instance)
            self._announce(advertise)
        except BaseException:
            self._instance.finalize()
            raise

    def __repr__(self) -> str:
        return f"Node(name={self._name!r}, instance={self._instance!r})"

    @property
    def name(self) -> str:
        """The name given to the constructor."""
        return self._name

    @property
    def instance(self) -> LLMDataDist:
        """The instance, for everything that this class has no method for."""
        return self._instance

    @property
    def address(self) -> str | None:
        """Where peers connect, `ip:port` or `[v6]:port`; None without `listen`."""
        bound = self._instance.listen_address
        return None if bound is None else _joined(*bound)

    def register(self, name: str, tensors: Sequence[object]) -> Cache:
        """Register tensors as a blocks cache that peers reach by its name.

        The cache keeps the tensors alive until `unregister` or `close` returns.

        Args:
            name: Unique within this node.
            tensors: As for CacheManager.register_tensors; dimension 0 counts blocks.

        Raises:
            KeyError: There is a cache of that name.
            TypeError, LLMException: as CacheManager.register_tensors.
        """
        key = block_cache_key(self._instance.cluster_id, name)
        manager = live_manager(self._instance, "register")
        return self._caches.register(manager, key, name, tensors)

    def unregister(self, name: str) -> None:
        """End a registration; when it returns, no peer touches the memory any more.

        Raises:
            KeyError: No cache has that name.
        """
        manager = live_manager(self._instance, "unregister")
        manager.unregister_cache(self._caches.remove(name).cache_id)

    def leased_blocks(self, name: str) -> frozenset[int]:
        """Return the blocks of a cache that some peer has leased now; does not wait.

        Raises:
            KeyError: No cache has that name.
        """
        manager = live_manager(self._instance, "leased_blocks")
        return manager.leased_blocks(self._caches.find(name))

    async def connect(self, peer: str, *, timeout: float = 10.0) -> Peer:
        """Link to a node, and return it; try again until the time is over.

        So nodes may start in any order. A node that is linked already is returned at once. A wait
        that is canceled ends when the attempt that runs has ended, and leaves no new link.

        Args:
            peer: Name of the node, looked up in the directory; or its `host:port`.
            timeout: Seconds.

        Raises:
            TypeError: peer is no str.
            LLMException: LLM_LINK_FAILED, LLM_TIMEOUT, with the last failure; LLM_ALREADY_LINK,
                LLM_PARAM_INVALID.
            OSError, ValueError: The file of the directory cannot be read, or is none.
        """
        check_str("peer", peer)
        deadline = time.monotonic() + timeout
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        # One after the other for a peer: of two waits, one that is canceled undoes its own link.
        connecting = self._connecting.setdefault(peer, asyncio.Lock())
        while True:
            pause_s = backoff.next()
            try:
                async with connecting:
                    left_ms = max(int((deadline - time.monotonic()) * 1000), 1)
                    cluster_id, _ = await self._calls.finish(
                        partial(self._link, peer, min(left_ms, _DIAL_MS)), self._undo_link
                    )
            except LLMException as error:
                if error.status_code not in _RETRIED or time.monotonic() + pause_s > deadline:
                    raise
            else:
                return Peer(peer, cluster_id, self._instance, self._caches, self._calls)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Leave the directory, end links, transfers and registrations. Idempotent.

        A wait that is canceled goes on until all of that has ended. A directory that cannot be
        written is logged.
        """
        await until_done(asyncio.get_running_loop().run_in_executor(None, self._close))

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _close(self) -> None:
        try:
            self._withdraw()
        finally:
            self._instance.finalize()  # ends the calls that run
            self._calls.close()

    def _withdraw(self) -> None:
        """Remove the address of this node from the directory, once."""
        announced, self._announced = self._announced, None
        if self._directory is None or announced is None:
            return
        try:
            self._directory.withdraw(self._name, announced)
        except RuntimeError:  # the node that has it is gone, or this instance was finalized
            pass
        except (OSError, ValueError) as error:  # of its file
            logger.warning("close: node %s stays in %s: %s", self._name, self._directory, error)

    def _found(self, directory: str | os.PathLike[str] | None) -> FileDirectory | PeerTable | None:
        """Return the directory of that name."""
        if directory is None:
            return None
        if isinstance(directory, str) and "/" not in directory and cut_address(directory)[1]:
            return PeerTable(self._instance, directory)
        return FileDirectory(directory)

    def _announce(self, advertise: str | None) -> None:
        """Write the address of this node into the directory, if there is one."""
        if self._directory is None or (bound := self._instance.listen_address) is None:
            return
        host, port = (bound[0], "") if advertise is None else cut_address(advertise)
        self._announced = _joined(host, int(port or bound[1]))
        self._directory.announce(self._name, self._announced)

    def _link(self, peer: str, timeout_ms: int) -> tuple[int, bool]:
        """Link to a node once; return its cluster id, and whether the link is new."""
        known = {link["cluster_id"] for link in self._instance.describe_links()}
        cluster_id = self._dial(peer, timeout_ms)
        return cluster_id, cluster_id not in known

    def _undo_link(self, linked: tuple[int, bool]) -> None:
        cluster_id, is_new = linked
        if is_new:
            self._instance.unlink_peer(cluster_id, force=True)

    def _dial(self, peer: str, timeout_ms: int) -> int:
        if cut_address(peer)[1]:
            return self._instance.link_peer(peer, timeout=timeout_ms)
        where = (
            "no directory was given"
            if self._directory is None
            else f"it is not in {self._directory}"
        )
        address = None if self._directory is None else self._directory.find(peer)
        if address is None:
            raise fail(
                LLMStatusCode.LLM_LINK_FAILED,
                "connect",
                f"the address of {peer!r} is unknown: {where}",
                "start the node with the same directory, or give its host:port",
            )
        return self._instance.link_peer(address, cluster_id=cluster_id_of(peer), timeout=timeout_ms)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _check_reachable(name: str, address: str | None) -> None:
    if address is not None and cut_address(address)[0].strip("[]") in _WILDCARDS:
        raise ValueError(
            f"{name} is {address!r}, at which no peer can connect; give advertise a host name or "
            "an address of this machine"
        )
