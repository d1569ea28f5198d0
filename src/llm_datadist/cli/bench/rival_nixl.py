"""NIXL as its users drive it from Python: make a transfer, post, poll.

NIXL has two ways to name the blocks of a transfer: descriptors made for it, and indices into lists
of descriptors that were prepared once. Each case uses the faster one.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.contender import Contender, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from llm_datadist.cli.bench.work import Blocks, Case, Memory

__all__ = ["PACKAGE", "Nixl", "NixlTcp", "make_agent", "register"]

PACKAGE = next((name for name in ("nixl_cu12", "nixl_cu13") if find_spec(name)), None)
"""The wheel that is installed."""


def make_agent(name: str, **settings: object) -> Any:  # noqa: ANN401 - no types
    """Return an agent over UCX; `settings` are of NIXL's configuration."""
    api = import_module(f"{PACKAGE}._api")
    return api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"], **settings))


def register(agent: Any, memory: Memory) -> None:  # noqa: ANN401 - no types
    """Register a buffer of host memory."""
    agent.register_memory([(work.address(memory), len(memory), 0, "")], "DRAM")


def _owner(pipe: Connection, memory: Memory) -> None:
    agent = make_agent("owner")
    register(agent, memory)
    pipe.send({"metadata": agent.get_agent_metadata(), "address": work.address(memory)})
    serve(pipe, memory)


def _owner_tcp(pipe: Connection, memory: Memory) -> None:
    os.environ["UCX_TLS"] = "tcp"
    _owner(pipe, memory)


class Nixl(Contender):
    """NIXL over UCX, whatever UCX chooses on one host."""

    name = "NIXL (UCX)"
    most_prepared: ClassVar[int] = 256
    """Pieces of a case for which indices are faster; for one piece a half of the time or less."""

    def __init__(self, local: Memory) -> None:
        super().__init__(local)
        self._agent = self.agent()
        register(self._agent, local)
        self._remote = self._agent.add_remote_agent(self.owner.hello["metadata"])
        self._remote_address = self.owner.hello["address"]
        self._blocks: tuple[Blocks, Blocks] | None = None
        self._lists: tuple[Any, Any] | None = None

    @classmethod
    def agent(cls) -> Any:  # noqa: ANN401 - no types
        """Return the local agent."""
        return make_agent("local")

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner that registers its buffer."""
        return _owner

    def prepare(self, case: Case) -> None:
        """Keep the block lists, and prepare lists of descriptors if that makes the case faster."""
        self._blocks = case.blocks()
        self._lists = None  # the handles of a case before end with it
        if case.pieces <= self.most_prepared:
            every = np.arange(case.count)
            local = self._descriptors(case, work.address(self.local), every)
            remote = self._descriptors(case, self._remote_address, every)
            self._lists = (
                self._agent.prep_xfer_dlist("", local),
                self._agent.prep_xfer_dlist(self._remote, remote),
            )

    def read(self, case: Case) -> None:
        """Read the case that was prepared."""
        self._move(case, "READ")

    def write(self, case: Case) -> None:
        """Write the case that was prepared."""
        self._move(case, "WRITE")

    def _descriptors(self, case: Case, base: int, blocks: Blocks) -> Any:  # noqa: ANN401
        rows = np.empty((case.pieces, 3), np.uint64)
        rows[:, 0] = case.addresses(base, blocks)
        rows[:, 1] = case.block_bytes
        rows[:, 2] = 0
        return self._agent.get_xfer_descs(rows, "DRAM")

    def _transfer(self, case: Case, operation: str) -> Any:  # noqa: ANN401 - no types
        """Return the handle of a new transfer."""
        assert self._blocks is not None
        src, dst = self._blocks
        local_blocks, remote_blocks = (dst, src) if operation == "READ" else (src, dst)
        if self._lists is None:
            local = self._descriptors(case, work.address(self.local), local_blocks)
            remote = self._descriptors(case, self._remote_address, remote_blocks)
            return self._agent.initialize_xfer(operation, local, remote, self._remote, b"")
        local_list, remote_list = self._lists
        return self._agent.make_prepped_xfer(
            operation,
            local_list,
            _indices(case, local_blocks),
            remote_list,
            _indices(case, remote_blocks),
        )

    def _move(self, case: Case, operation: str) -> None:
        handle = self._transfer(case, operation)
        state = self._agent.transfer(handle)
        while state == "PROC":
            state = self._agent.check_xfer_state(handle)
        self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise RuntimeError(f"NIXL: {state}")


def _indices(case: Case, blocks: Blocks) -> NDArray[np.int32]:
    """Return the places of these blocks of each tensor in a list of all."""
    tensors = np.arange(case.tensors, dtype=np.int32) * np.int32(case.count)
    places: NDArray[np.int32] = tensors[:, None] + blocks.astype(np.int32)[None, :]
    return places.ravel()


class NixlTcp(Nixl):
    """NIXL restricted to TCP; the environment variable must be set before the process starts."""

    name = "NIXL (UCX_TLS=tcp)"

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner that registers its buffer."""
        return _owner_tcp
