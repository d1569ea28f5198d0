"""Lanes between hosts that are far apart: rates by round trip, loss and number of lanes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from bench.turns import alternate
from bench.wan import Network, Wan
from llm_datadist.cli.bench.datadist import DatadistTcp, owner
from llm_datadist.cli.bench.driver import call_times, prepare, prepare_write, start
from llm_datadist.cli.bench.rival_nixl import PACKAGE, NixlTcp
from llm_datadist.cli.bench.timing import Row
from llm_datadist.cli.bench.work import MIB, Case, whole_mib

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np

    from bench.timing import Goal
    from llm_datadist.cli.bench.contender import Contender

_MOST_LANES = 64  # the dialing end chooses
_KIB = 1024


def owner_of_any(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="tcp", pool=False, lanes_per_link=_MOST_LANES)


class Lanes4(DatadistTcp):
    """Four lanes in each direction."""

    name = "4 lanes"
    properties: ClassVar[dict[str, object]] = {"lanes_per_link": 4}

    @staticmethod
    def owner_body() -> Any:
        return owner_of_any


class Lanes1(Lanes4):
    """One lanes in each direction."""

    name = "1 lane"
    properties: ClassVar[dict[str, object]] = {"lanes_per_link": 1}


class Lanes2(Lanes4):
    """Two lanes in each direction."""

    name = "2 lanes"
    properties: ClassVar[dict[str, object]] = {"lanes_per_link": 2}


class Lanes8(Lanes4):
    """Eight lanes in each direction."""

    name = "8 lanes"
    properties: ClassVar[dict[str, object]] = {"lanes_per_link": 8}


class Lanes16(Lanes4):
    """Sixteen lanes in each direction."""

    name = "16 lanes"
    properties: ClassVar[dict[str, object]] = {"lanes_per_link": 16}


class Networks:
    """The comparison on one emulated network.

    Args:
        rounds, scale: As of every comparison.
        network: What it does to packets.
    """

    def __init__(self, rounds: int, scale: float, network: Network) -> None:
        self.rounds = rounds
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._total = whole_mib(256 * MIB * scale)
        self._wan = Wan(network)
        kinds: list[type[Contender]] = [Lanes1, Lanes4, Lanes16]
        if PACKAGE is not None:
            kinds.append(NixlTcp)
        try:
            self._drivers = list(start(kinds, self._total, {"UCX_TLS": "tcp"}).values())
        except BaseException:
            self._wan.close()
            raise

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()
        self._wan.close()

    def run(self) -> None:
        for block in (256 * _KIB, 16 * _KIB):
            case = Case(f"{block // _KIB} KiB", block, self._total)
            for driver in self._drivers:
                driver.call(prepare, case)
                driver.call(prepare_write, case)
            for what, name in (("read", f"pull {case.name}"), ("write", f"push {case.name}")):
                self.rows += alternate(name, case, what, self._drivers, self.rounds)
        for driver in self._drivers:
            (p50,) = driver.call(call_times, 50, (50,))
            self.rows.append(Row("one 4 KiB block, p50", driver.name, "us", [p50]))
