"""TCP over loopback: pulls, pushes and small calls, beside NIXL on TCP, Mooncake and iperf3."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from typing import TYPE_CHECKING

import numpy as np

from bench import timing, work
from bench.ours import OWNER_ID, OursTcp
from bench.same_host import cases
from bench.timing import Goal, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contender import Contender

OURS, NIXL, MOONCAKE = "llm-datadist (tcp)", "NIXL (UCX_TLS=tcp)", "Mooncake (tcp)"
IPERF = "iperf3 -P 2"
_IPERF_SECONDS = 2


class Tcp:
    """The comparison over loopback; every contender has its own owner process."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds, self.scale = rounds, scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        os.environ["UCX_TLS"] = "tcp"  # before the first agent of this process
        self.local = work.buffer(work.whole_mib(512 * work.MIB * scale))
        self.ours = OursTcp(self.local)
        self.nixl: Contender | None = None
        self.mooncake: Contender | None = None
        if importlib.util.find_spec("nixl_cu12") is not None:
            from bench.rival_nixl import NixlTcp  # noqa: PLC0415

            self.nixl = NixlTcp(self.local)
        if importlib.util.find_spec("mooncake") is not None:
            from bench.rival_mooncake import Mooncake  # noqa: PLC0415

            self.mooncake = Mooncake(self.local)

    def close(self) -> None:
        for contender in (self.ours, self.nixl, self.mooncake):
            if contender is not None:
                contender.close()

    def run(self) -> None:
        for case in cases(self.scale):
            self._pulls(case)
            self._pushes(case)
        self._small_calls()

    def _pulls(self, case: work.Case) -> None:
        contenders = [self.ours, self.nixl]
        if case.name == "1 MiB":  # its TCP transport fails on many small blocks
            contenders.append(self.mooncake)
        present = [contender for contender in contenders if contender is not None]
        for contender in present:
            contender.prepare(case)
            self._verify(contender, case)
        runs: dict[str, Callable[[], object]] = {
            contender.name: (lambda c=contender: c.read(case)) for contender in present
        }
        name = f"pull {case.name}"
        self.rows += timing.alternate(name, case.total_bytes, runs, self.rounds)
        self.rows.append(Row(f"CPU of {name}", OURS, "us", cpu_seconds_per_gib(self.ours, case)))
        if self.nixl is not None:
            self.rows.append(
                Row(f"CPU of {name}", NIXL, "us", cpu_seconds_per_gib(self.nixl, case))
            )
            self.goals.append(Goal(f"CPU of {name}", OURS, NIXL, 1.0))
        wanted = {"1 MiB": (5.0, 0.9), "32 KiB": (4.5, 0.85), "4 KiB": (4.0, 0.0)}[case.name]
        self.goals.append(Goal(name, OURS, NIXL, wanted[0]))
        if case.name == "1 MiB":
            self.goals.append(Goal(name, OURS, MOONCAKE, 2.0))
        if wanted[1] and shutil.which("iperf3"):
            self.rows.append(Row(name, IPERF, "GB/s", [iperf3() for _ in range(3)]))
            self.goals.append(Goal(name, OURS, IPERF, wanted[1]))

    def _pushes(self, case: work.Case) -> None:
        present = [contender for contender in (self.ours, self.nixl) if contender is not None]
        name = f"push {case.name}"
        self.rows += timing.alternate(
            name,
            case.total_bytes,
            {contender.name: (lambda c=contender: c.write(case)) for contender in present},
            self.rounds,
        )
        wanted = {"1 MiB": 1.6, "32 KiB": 4.5, "4 KiB": 6.0}[case.name]
        self.goals.append(Goal(name, OURS, NIXL, wanted))

    def _small_calls(self) -> None:
        one = work.Case("one 4 KiB block", 4096, 4096)
        self.ours.prepare(one)
        idle = timing.latencies(lambda: self.ours.read(one), 3000)
        self.ours.owner.ask("busy", True)
        busy = timing.latencies(lambda: self.ours.read(one), 3000)
        self.ours.owner.ask("busy", False)
        p50 = timing.percentile(idle, 50)
        spun = "one block p99 while the owner's interpreter spins"
        self.rows += [
            Row("one 4 KiB block, p50", OURS, "us", [p50]),
            Row("one 4 KiB block, p50", "goal", "us", [60.0]),
            Row(spun, OURS, "us", [timing.percentile(busy, 99)]),
            Row(spun, "5 x p50", "us", [5 * p50]),
            Row("link_clusters p50", OURS, "us", [link_p50(self.ours)]),
            Row("link_clusters p50", "goal", "us", [10_000.0]),
        ]
        self.goals += [
            Goal("one 4 KiB block, p50", OURS, "goal", 1.0),
            Goal(spun, OURS, "5 x p50", 1.0),
            Goal("link_clusters p50", OURS, "goal", 1.0),
        ]

    def _verify(self, contender: Contender, case: work.Case) -> None:
        seed = case.block_bytes + len(contender.name)
        contender.owner.ask("fill", seed)
        self.local[: case.total_bytes] = 0
        contender.read(case)
        if not np.array_equal(self.local[: case.total_bytes], work.expected(case, seed)):
            raise RuntimeError(f"{contender.name}: pull {case.name}: wrong bytes")


def link_p50(contender: OursTcp) -> float:
    """Microseconds that linking the owner takes."""
    from llm_datadist import LLMClusterInfo, LLMStatusCode  # noqa: PLC0415

    info = LLMClusterInfo()
    info.remote_cluster_id = OWNER_ID
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(*contender.owner.hello["address"])
    values = []
    for _ in range(30):
        contender.instance.unlink_clusters([info])
        begin = time.perf_counter_ns()
        status, _ = contender.instance.link_clusters([info], 10_000)
        values.append((time.perf_counter_ns() - begin) / 1e3)
        if status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError("cannot link again")
    return statistics.median(values)


def cpu_seconds_per_gib(contender: Contender, case: work.Case) -> list[float]:
    """CPU microseconds of both processes for each GiB pulled, as a cost (less is better)."""
    values = []
    for _ in range(3):
        begin = _cpu_seconds() + contender.owner.ask("cpu")
        contender.read(case)
        used = _cpu_seconds() + contender.owner.ask("cpu") - begin
        values.append(used / case.total_bytes * (1 << 30) * 1e6)
    return values


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def iperf3() -> float:
    """GB/s of two plain streams over loopback."""
    command = ["iperf3", "-s", "-1", "-p", "0"]
    port = _free_port()
    command[-1] = str(port)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(0.3)
    try:
        result = subprocess.run(
            f"iperf3 -c 127.0.0.1 -p {port} -P 2 -J -t {_IPERF_SECONDS}".split(),
            capture_output=True,
            check=True,
            text=True,
        )
    finally:
        server.kill()
        server.wait()
    return float(json.loads(result.stdout)["end"]["sum_received"]["bits_per_second"] / 8e9)


def _free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
