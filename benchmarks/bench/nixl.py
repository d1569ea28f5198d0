"""Pulls of llm-datadist through NIXL beside bare NIXL, over one transport."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.timing import Goal
from bench.turns import alternate
from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.contender import serve
from llm_datadist.cli.bench.datadist import Datadist, owner, register
from llm_datadist.cli.bench.driver import call_times, prepare, start
from llm_datadist.cli.bench.rival_nixl import Nixl, make_agent
from llm_datadist.cli.bench.rival_nixl import register as register_buffer
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from llm_datadist.cli.bench.contender import Contender
    from llm_datadist.cli.bench.driver import Driver

DATADIST, BARE = "llm-datadist (nixl)", "bare NIXL"
TRANSPORTS = {"tcp": "tcp", "shm": "shm,cma,self,tcp"}
_TENSORS = 122


class Consecutive(work.Case):
    """All blocks in order: neighbors on both sides."""

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.arange(self.count)
        return order, order.copy()


def owner_nixl(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="nixl", pool=False)


class DatadistNixl(Datadist):
    """Forced onto NIXL."""

    name = DATADIST
    backend = "nixl"
    _made: Any = None

    @staticmethod
    def owner_body() -> Any:
        return owner_nixl

    def connect(self, total: int) -> None:
        usable = total // (_TENSORS * 4096) * (_TENSORS * 4096)
        case = work.Case("many tensors", 4096, usable, tensors=_TENSORS)
        self._made = register(self.instance, self.local, case)
        self.link()

    def disconnect(self) -> None:
        self.unlink()
        if self._made is not None:
            self.instance.cache_manager.unregister_cache(self._made.cache_id)


class BareNixl(Nixl):
    """As its base, over any transport. Descriptors are made for each transfer."""

    name = BARE
    most_prepared = 0  # lists would not outlast `disconnect`
    _registered: Any = None

    def connect(self, total: int) -> None:
        self._registered = self._agent.register_memory(self._tensors(total), "DRAM")
        self._remote = self._agent.add_remote_agent(self.owner.hello["metadata"])
        self._agent.make_connection(self._remote)

    def disconnect(self) -> None:
        if self._registered is not None:
            self._agent.deregister_memory(self._registered)
        self._agent.remove_remote_agent(self._remote)

    def _tensors(self, total: int) -> list[tuple[int, int, int, str]]:
        each = total // _TENSORS // 4096 * 4096
        first = work.address(self.local)
        return [(first + index * each, each, 0, "") for index in range(_TENSORS)]


def owner_that_listens(pipe: Connection, memory: np.ndarray) -> None:
    """Body of an owner whose agent peers ask for its metadata."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    agent = make_agent("owner", enable_listen_thread=True, listen_port=port)
    register_buffer(agent, memory)
    pipe.send(
        {
            "metadata": agent.get_agent_metadata(),
            "address": work.address(memory),
            "listens": ("127.0.0.1", port),
        }
    )
    serve(pipe, memory)


class AskingNixl(BareNixl):
    """Given an address only: NIXL's own exchange of metadata, which has a thread at either end.

    In processes of its own, so that those threads are no burden to what else is measured.
    """

    @staticmethod
    def owner_body() -> Any:
        return owner_that_listens

    @classmethod
    def agent(cls) -> Any:
        return make_agent("local", enable_listen_thread=True, listen_port=0)

    def connect(self, total: int) -> None:
        self._registered = self._agent.register_memory(self._tensors(total), "DRAM")
        self._agent.fetch_remote_metadata("owner", *self.owner.hello["listens"])
        while not self._agent.check_remote_metadata("owner"):
            time.sleep(50e-6)
        self._agent.make_connection("owner")


# What a driver does for this comparison only.


def small(contender: Contender) -> float:
    """p50 of one block, in us."""
    return call_times(contender, 1000, (50,))[0]


def set_up(contender: DatadistNixl | BareNixl) -> float:
    """Register 122 tensors and connect, where processes and agents exist already; in us."""
    total = len(contender.local)
    contender.disconnect()
    begin = time.perf_counter_ns()
    contender.connect(total)
    return (time.perf_counter_ns() - begin) / 1e3


def described(contender: DatadistNixl) -> object:
    """Return the data path of describe_link."""
    return contender.describe()["channel"]


class NixlComparison:
    """The comparison; one of the two is awake at a time."""

    def __init__(self, rounds: int, scale: float, transport: str) -> None:
        self.rounds = max(rounds, 5)
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._environment = {"UCX_TLS": TRANSPORTS[transport]}
        self._total = work.whole_mib(512 * work.MIB * scale)
        self._drivers = list(
            start((DatadistNixl, BareNixl), self._total, self._environment).values()
        )

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()

    def run(self) -> None:
        total = self._total
        for case, wanted in (
            (work.Case("pull 32 KiB, random", 32 << 10, total), 1.0),
            (work.Case("pull 4 KiB, random", 4 << 10, total), 1.2),
            (Consecutive("pull 32 KiB, in order", 32 << 10, total, seed=8), 1.5),
        ):
            self._compare(case, "read")
            self.goals.append(Goal(case.name, DATADIST, BARE, wanted))
        self._compare(work.Case("push 32 KiB, random", 32 << 10, total), "write")
        self._times("one 4 KiB block, p50", small, 1 / 1.5)
        self._times(f"register {_TENSORS} tensors and link", set_up, 1 / 1.2)
        self._from_address()
        print(self._drivers[0].call(described))

    def _from_address(self) -> None:
        """Compare links that are made from an address only."""
        (asking,) = start((AskingNixl,), self._total, self._environment).values()
        datadist = self._drivers[0]
        try:
            self._times("the same, given an address only", set_up, 1 / 1.2, (datadist, asking))
        finally:
            asking.close()

    def _compare(self, case: work.Case, what: str) -> None:
        for driver in self._drivers:
            driver.call(prepare, case)
        self.rows += alternate(case.name, case, what, self._drivers, self.rounds)

    def _times(
        self,
        name: str,
        action: Callable[..., float],
        wanted: float,
        drivers: Sequence[Driver] | None = None,
    ) -> None:
        drivers = drivers or self._drivers
        rows = {driver.name: Row(name, driver.name, "us") for driver in drivers}
        for _ in range(self.rounds):
            for driver in drivers:
                rows[driver.name].values.append(driver.call(action))
        self.rows += rows.values()
        self.goals.append(Goal(name, DATADIST, BARE, wanted))
