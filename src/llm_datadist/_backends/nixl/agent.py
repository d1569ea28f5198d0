"""A NIXL agent: registration, peers, transfer requests. Its exceptions become `NixlError`."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from llm_datadist._backends.nixl.bindings import NixlBindings

    Rows = npt.NDArray[np.uint64]
    Indices = npt.NDArray[np.int32]


class NixlError(Exception):
    """The engine refused or failed; the text is NIXL's."""


@final
class PreparedList:
    """A prepared list of descriptors, which transfers name by index."""

    __slots__ = ("handle",)

    def __init__(self, handle: int) -> None:
        self.handle = handle


@final
class TransferRequest:
    """A posted transfer request. It cannot be canceled. Thread-safe.

    Attributes:
        done: Whether it succeeded; None while it runs, as of the last poll.
    """

    __slots__ = ("_agent", "_handle", "_lock", "done")

    def __init__(self, agent: Agent, handle: int) -> None:
        self._agent = agent
        self._handle = handle
        self._lock = threading.Lock()  # the engine allows one call about a request at a time
        self.done: bool | None = None

    def poll(self) -> bool | None:
        """Return whether the request succeeded, or None while it runs."""
        with self._lock:
            if self.done is None:
                self.done = self._agent.state(self._handle)
            return self.done


@final
class Agent:
    """See the module. Thread-safe; after `close` every call raises NixlError.

    Calls run concurrently: an engine that copies bytes in the call that posts a transfer, as UCX
    does within a host, uses as many cores as threads post.

    Args:
        bindings: NIXL's.
        name: Must be unique among all agents that ever connect.
        engine: "UCX" or "LIBFABRIC".
        params: Parameters of the engine.

    Raises:
        Unavailable: The engine cannot start.
    """

    def __init__(
        self, bindings: NixlBindings, name: str, engine: str, params: Mapping[str, str]
    ) -> None:
        self.name = name
        self._module = bindings.module
        self._kinds = {"DRAM": self._module.DRAM_SEG, "VRAM": self._module.VRAM_SEG}
        self._changed = threading.Condition()
        self._calls = 0
        self.closed = False
        self._agent: Any  # the only reference: `close` must drop the last one
        self._agent, self._engine = bindings.make_agent(name, engine, params)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        with self._changed:
            if self.closed:
                # Raise only after the agent is destroyed: callers rely on no further I/O.
                self._changed.wait_for(lambda: self._agent is None)
                raise NixlError("the agent is closed")
            self._calls += 1
        try:
            yield
        except Exception as error:
            raise NixlError(f"{type(error).__name__}: {error}") from error
        finally:
            with self._changed:
                self._calls -= 1
                if not self._calls:
                    self._changed.notify_all()

    def _regions(self, rows: Rows, kind: str) -> Any:  # noqa: ANN401 - the bindings have no types
        listed = [(int(address), int(size), int(device), "") for address, size, device in rows]
        return self._module.nixlRegDList(self._kinds[kind], listed)

    def _pieces(self, rows: Rows, kind: str) -> Any:  # noqa: ANN401 - the bindings have no types
        return self._module.nixlXferDList(self._kinds[kind], rows)

    def register(self, rows: Rows, kind: str) -> None:
        """Register memory; rows are (address, bytes, device)."""
        with self._calling():
            self._agent.registerMem(self._regions(rows, kind), [self._engine])

    def deregister(self, rows: Rows, kind: str) -> None:
        """Undo `register` of the same rows."""
        with self._calling():
            self._agent.deregisterMem(self._regions(rows, kind), [self._engine])

    def connection_metadata(self) -> bytes:
        """Return what a peer needs to connect, without regions."""
        with self._calling():
            empty = self._module.nixlRegDList(self._kinds["DRAM"])
            return bytes(self._agent.getLocalPartialMD(empty, True, [self._engine]))

    def region_metadata(self, rows: Rows, kind: str) -> bytes:
        """Return what a connected peer needs to reach these registered rows."""
        with self._calling():
            return bytes(
                self._agent.getLocalPartialMD(self._regions(rows, kind), False, [self._engine])
            )

    def load(self, metadata: bytes) -> str:
        """Load metadata of a peer; return its agent's name."""
        with self._calling():
            name = self._agent.loadRemoteMD(metadata)
        return name.decode() if isinstance(name, bytes) else str(name)

    def forget_peer(self, name: str) -> None:
        """Disconnect a peer. None of its requests may run: the engine would lose track of them."""
        with suppress(NixlError), self._calling():
            self._agent.invalidateRemoteMD(name)

    def prepare(self, peer: str | None, rows: Rows, kind: str) -> PreparedList:
        """Prepare descriptors of a peer, or local ones (None)."""
        with self._calling():
            name = self._module.NIXL_INIT_AGENT if peer is None else peer
            return PreparedList(
                self._agent.prepXferDlist(name, self._pieces(rows, kind), [self._engine])
            )

    def release(self, prepared: PreparedList) -> None:
        """Release a prepared list."""
        with suppress(NixlError), self._calling():
            self._agent.releasedDlistH(prepared.handle)

    def start(
        self, peer: str, local: Rows, remote: Rows, kind: str, *, write: bool
    ) -> TransferRequest:
        """Post a transfer between local host memory and memory of a peer."""
        with self._calling():
            handle = self._agent.createXferReq(
                self._direction(write=write),
                self._pieces(local, "DRAM"),
                self._pieces(remote, kind),
                peer,
                "",
                [self._engine],
            )
            return self._post(handle)

    def start_prepared(
        self,
        local: PreparedList,
        local_indices: Indices,
        remote: PreparedList,
        remote_indices: Indices,
    ) -> TransferRequest:
        """Post a read between prepared lists, by index."""
        with self._calling():
            handle = self._agent.makeXferReq(
                self._direction(write=False),
                local.handle,
                local_indices,
                remote.handle,
                remote_indices,
                "",
                [self._engine],
            )
            return self._post(handle)

    def state(self, handle: int) -> bool | None:
        """Return whether a request succeeded, and release its handle; None while it runs."""
        try:
            with self._calling():
                try:
                    status = self._agent.getXferStatus(handle)
                except Exception:  # the connection broke, which ends all requests on it
                    status = None
                return self._result(handle, status)
        except NixlError:
            return False

    def close(self) -> None:
        """Destroy the agent; when it returns no request moves a byte any more. Idempotent."""
        with self._changed:
            self.closed = True
            self._changed.wait_for(lambda: not self._calls)
            self._agent = None  # the last reference: its destructor stops the engine
            self._changed.notify_all()

    def _direction(self, *, write: bool) -> Any:  # noqa: ANN401 - the bindings have no types
        return self._module.NIXL_WRITE if write else self._module.NIXL_READ

    def _post(self, handle: int) -> TransferRequest:
        request = TransferRequest(self, handle)
        try:
            status = self._agent.postXferReq(handle, "")
        except Exception:
            with suppress(Exception):
                self._agent.releaseXferReq(handle)
            raise
        request.done = self._result(handle, status)
        return request

    def _result(self, handle: int, status: Any) -> bool | None:  # noqa: ANN401 - as above
        if status == self._module.NIXL_IN_PROG:
            return None
        with suppress(Exception):
            self._agent.releaseXferReq(handle)
        return bool(status == self._module.NIXL_SUCCESS)


def rows_of(addresses: Rows, sizes: Rows, device_id: int = 0) -> Rows:
    """Make rows (address, bytes, device)."""
    rows = np.empty((len(addresses), 3), np.uint64)
    rows[:, 0], rows[:, 1], rows[:, 2] = addresses, sizes, device_id
    return rows
