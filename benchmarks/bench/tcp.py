"""TCP over loopback, or between two hosts: llm-datadist beside NIXL on TCP, Mooncake and iperf3."""

from __future__ import annotations

import shutil
import statistics
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bench import ping_pong
from bench.same_host import cases
from bench.timing import Goal
from bench.turns import alternate, busy_call_times, cpu_us_per_gib
from bench.veth import Veth
from llm_datadist.cli.bench.datadist import DatadistTcp
from llm_datadist.cli.bench.driver import Driver, call_times, prepare, prepare_write, start
from llm_datadist.cli.bench.limits import IPERF, iperf3
from llm_datadist.cli.bench.rival_mooncake import Mooncake
from llm_datadist.cli.bench.rival_nixl import PACKAGE, NixlTcp
from llm_datadist.cli.bench.timing import Row
from llm_datadist.cli.bench.work import MIB, Case, whole_mib

if TYPE_CHECKING:
    from llm_datadist.cli.bench.contender import Contender

DATADIST, NIXL, MOONCAKE = DatadistTcp.name, NixlTcp.name, Mooncake.name
_CALLS = 3000


class Tcp:
    """The comparison; one contender is awake at a time.

    Args:
        rounds, scale: As of every comparison.
        veth: Between two network namespaces instead of over loopback.
    """

    def __init__(self, rounds: int, scale: float, *, veth: bool = False) -> None:
        self._veth = Veth() if veth else None
        self.rounds, self.scale = rounds, scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        kinds: list[type[Contender]] = [DatadistTcp]
        if PACKAGE is not None:
            kinds.append(NixlTcp)
        if find_spec("mooncake") is not None:
            kinds.append(Mooncake)
        size = whole_mib(512 * MIB * scale)
        try:
            self._drivers = start(kinds, size, {"UCX_TLS": "tcp"})
        except BaseException:
            if self._veth is not None:
                self._veth.close()
            raise

    def close(self) -> None:
        for driver in self._drivers.values():
            driver.close()
        if self._veth is not None:
            self._veth.close()

    def run(self) -> None:
        for case in cases(self.scale):
            self._pulls(case)
            self._pushes(case)
        self._small_calls()

    def _ready(self, case: Case, *names: str) -> list[Driver]:
        drivers = [self._drivers[name] for name in names if name in self._drivers]
        for driver in drivers:
            driver.call(prepare, case)
        return drivers

    def _pulls(self, case: Case) -> None:
        names = [DATADIST, NIXL]
        if case.name == "1 MiB":  # its TCP transport fails on many small blocks
            names.append(MOONCAKE)
        name = f"pull {case.name}"
        drivers = self._ready(case, *names)
        self.rows += alternate(name, case, "read", drivers, self.rounds)
        for driver in drivers[:2]:
            costs = [driver.call(cpu_us_per_gib, case) for _ in range(3)]
            self.rows.append(Row(f"CPU of {name}", driver.name, "us", costs))
        self.goals.append(Goal(f"CPU of {name}", DATADIST, NIXL, 1.0))
        wanted = {"1 MiB": (5.0, 0.9), "32 KiB": (4.5, 0.85), "4 KiB": (4.0, 0.0)}[case.name]
        self.goals.append(Goal(name, DATADIST, NIXL, wanted[0]))
        if case.name == "1 MiB":
            self.goals.append(Goal(name, DATADIST, MOONCAKE, 2.0))
        if wanted[1] and shutil.which("iperf3"):
            self.rows.append(Row(name, IPERF, "GB/s", [iperf3() for _ in range(self.rounds)]))
            self.goals.append(Goal(name, DATADIST, IPERF, wanted[1]))

    def _pushes(self, case: Case) -> None:
        name = f"push {case.name}"
        drivers = self._ready(case, DATADIST, NIXL)
        for driver in drivers:
            driver.call(prepare_write, case)
        self.rows += alternate(name, case, "write", drivers, self.rounds)
        wanted = {"1 MiB": 1.6, "32 KiB": 4.5, "4 KiB": 6.0}[case.name]
        self.goals.append(Goal(name, DATADIST, NIXL, wanted))

    def _small_calls(self) -> None:
        datadist = self._drivers[DATADIST]
        p50, p99 = datadist.call(call_times, _CALLS, (50, 99))
        bare_p50, bare_p99 = ping_pong.times(_CALLS, (50, 99))
        (busy,) = datadist.call(busy_call_times, _CALLS, (99,))
        spun = "one block p99 while the owner's interpreter spins"
        self.rows += [
            Row("one 4 KiB block, p50", DATADIST, "us", [p50]),
            Row("one 4 KiB block, p99", DATADIST, "us", [p99]),
            Row("one 4 KiB block, p50", ping_pong.NAME, "us", [bare_p50]),
            Row("one 4 KiB block, p99", ping_pong.NAME, "us", [bare_p99]),
            Row(spun, DATADIST, "us", [busy]),
            Row(spun, "5 x p50", "us", [5 * p50]),
            Row("link_clusters p50", DATADIST, "us", [datadist.call(link_p50)]),
            Row("link_clusters p50", "goal", "us", [10_000.0]),
        ]
        self.goals += [
            Goal("one 4 KiB block, p50", DATADIST, ping_pong.NAME, 1 / 1.3),
            Goal(spun, DATADIST, "5 x p50", 1.0),
            Goal("link_clusters p50", DATADIST, "goal", 1.0),
        ]


def link_p50(contender: DatadistTcp) -> float:
    """Microseconds that linking the owner takes."""
    values = []
    for _ in range(30):
        contender.unlink()
        begin = time.perf_counter_ns()
        contender.link()
        values.append((time.perf_counter_ns() - begin) / 1e3)
    return statistics.median(values)
