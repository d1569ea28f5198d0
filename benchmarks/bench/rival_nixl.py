"""NIXL as its users drive it from Python: descriptors made for each transfer, post, poll."""

from __future__ import annotations

import os
import socket
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import work
from bench.contender import Contender, serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


PACKAGE = next((name for name in ("nixl_cu12", "nixl_cu13") if find_spec(name)), None)
"""The wheel that is installed."""


def make_agent(name: str, listen_port: int | None = None) -> Any:
    """An agent; with a port it exchanges metadata by itself (0: it only asks others)."""
    api = import_module(f"{PACKAGE}._api")
    config = api.nixl_agent_config(
        backends=["UCX"],
        enable_listen_thread=listen_port is not None,
        listen_port=listen_port or 0,
    )
    return api.nixl_agent(name, config)


def _register(agent: Any, memory: np.ndarray) -> None:
    agent.register_memory([(work.address(memory), len(memory), 0, "")], "DRAM")


def owner(pipe: Connection, memory: np.ndarray) -> None:
    """Body of the owner process."""
    agent = make_agent("owner")
    _register(agent, memory)
    pipe.send({"metadata": agent.get_agent_metadata(), "address": work.address(memory)})
    serve(pipe, memory)


def owner_that_listens(pipe: Connection, memory: np.ndarray) -> None:
    """The same, with an agent that peers ask for its metadata."""
    port = _free_port()
    agent = make_agent("owner", port)
    _register(agent, memory)
    pipe.send(
        {
            "metadata": agent.get_agent_metadata(),
            "address": work.address(memory),
            "listens": ("127.0.0.1", port),
        }
    )
    serve(pipe, memory)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def owner_tcp(pipe: Connection, memory: np.ndarray) -> None:
    os.environ["UCX_TLS"] = "tcp"
    owner(pipe, memory)


class Nixl(Contender):
    """NIXL over UCX, whatever UCX chooses on one host."""

    name = "NIXL (UCX)"

    def __init__(self, local: np.ndarray) -> None:
        super().__init__(local)
        self._agent = self.agent()
        _register(self._agent, local)
        self._remote = self._agent.add_remote_agent(self.owner.hello["metadata"])
        self._remote_address = self.owner.hello["address"]
        self._blocks: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @classmethod
    def agent(cls) -> Any:
        return make_agent("local")

    @staticmethod
    def owner_body() -> Any:
        return owner

    def prepare(self, case: work.Case) -> None:
        self._blocks[case.name] = case.blocks()

    def _descriptors(self, base: int, blocks: np.ndarray, size: int) -> Any:
        rows = np.empty((len(blocks), 3), np.uint64)
        rows[:, 0] = blocks.astype(np.uint64) * np.uint64(size) + np.uint64(base)
        rows[:, 1] = size
        rows[:, 2] = 0
        return self._agent.get_xfer_descs(rows, "DRAM")

    def _move(self, case: work.Case, operation: str) -> None:
        src, dst = self._blocks[case.name]
        local_blocks, remote_blocks = (dst, src) if operation == "READ" else (src, dst)
        local = self._descriptors(work.address(self.local), local_blocks, case.block_bytes)
        remote = self._descriptors(self._remote_address, remote_blocks, case.block_bytes)
        handle = self._agent.initialize_xfer(operation, local, remote, self._remote, b"")
        state = self._agent.transfer(handle)
        while state == "PROC":
            state = self._agent.check_xfer_state(handle)
        self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise RuntimeError(f"NIXL: {state}")

    def read(self, case: work.Case) -> None:
        self._move(case, "READ")

    def write(self, case: work.Case) -> None:
        self._move(case, "WRITE")


class NixlTcp(Nixl):
    """NIXL restricted to TCP; the environment variable must be set before the process starts."""

    name = "NIXL (UCX_TLS=tcp)"

    @staticmethod
    def owner_body() -> Any:
        return owner_tcp
