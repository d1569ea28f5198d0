"""Very many links of one instance over loopback: time, memory, descriptors and CPU per link."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.bench import datadist
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from bench.timing import Goal
    from llm_datadist import LLMDataDist
    from llm_datadist.testing import PeerGroup
    from llm_datadist.testing.member import Member

HUB = "the instance that all link"
FIRST_ID = 1000
_IDLE_SECONDS = 10.0
_SETTLE_SECONDS = 6.0  # threads that wait for another call go
_LONG_S = 1200.0


class Links:
    """One hub in this process, and processes with many instances each that link it."""

    def __init__(self, links: int, processes: int, backend: str) -> None:
        self.links = links // processes * processes
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._processes = processes
        self._backend = backend
        self._hub = datadist.start(datadist.OWNER_ID, backend)

    def close(self) -> None:
        self._hub.finalize()

    def run(self) -> None:
        from llm_datadist.testing import PeerGroup  # noqa: PLC0415

        with PeerGroup(timeout_s=_LONG_S) as group:
            self._run(group)

    def _run(self, group: PeerGroup) -> None:
        share = self.links // self._processes
        crowds = [
            group.start(
                crowd,
                FIRST_ID + number * share,
                share,
                self._hub.listen_address,
                self._backend,
            )
            for number in range(self._processes)
        ]
        for each in crowds:
            each.receive()
        before = _held()
        began = time.perf_counter()
        for each in crowds:
            each.send("link")
        calls = [seconds * 1e3 for each in crowds for seconds in each.receive()]
        elapsed_ms = (time.perf_counter() - began) * 1e3
        time.sleep(_SETTLE_SECONDS)
        after = _held()
        case = f"{self.links} links"
        self._add(case, f"link_clusters, {self._processes} processes at once", "ms", calls)
        self._add(case, "time for each link, all together", "ms", [elapsed_ms / self.links])
        for name, unit in (("memory", "KiB"), ("descriptors", "each"), ("threads", "in all")):
            grown = after[name] - before[name]
            self._add(case, name, unit, [grown if unit == "in all" else grown / self.links])
        self._add(case, "CPU while idle, heartbeats included", "% of a core", [_idle_percent()])
        for each in crowds:
            each.send("end")
            each.receive()

    def _add(self, case: str, what: str, unit: str, values: list[float]) -> None:
        self.rows.append(Row(f"{case}: {what}", HUB, unit, values))


def crowd(
    member: Member, first_id: int, count: int, address: tuple[str, int], backend: str
) -> None:
    """Body of another process: make the instances, then link and end them on command."""
    instances = [datadist.start(first_id + number, backend) for number in range(count)]
    member.send("ready")
    member.receive(_LONG_S)
    member.send([_link(instance, address) for instance in instances])
    member.receive(_LONG_S)
    for instance in instances:
        instance.finalize()
    member.send("ended")


def _link(instance: LLMDataDist, address: tuple[str, int]) -> float:
    from llm_datadist import LLMClusterInfo, LLMStatusCode  # noqa: PLC0415

    info = LLMClusterInfo()
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info(*address)
    began = time.perf_counter()
    status, _ = instance.link_clusters([info], 60_000)
    if status != LLMStatusCode.LLM_SUCCESS:
        raise RuntimeError(f"cannot link: {status.name}")
    return time.perf_counter() - began


def _held() -> dict[str, float]:
    """Return memory and descriptors of this process."""
    process = Path("/proc/self")
    lines = (process / "status").read_text().splitlines()
    (resident,) = (line for line in lines if line.startswith("VmRSS"))
    return {
        "memory": float(resident.split()[1]),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
    }


def _idle_percent() -> float:
    values = []
    for _ in range(3):
        began, used = time.perf_counter(), time.process_time()
        time.sleep(_IDLE_SECONDS / 3)
        values.append((time.process_time() - used) / (time.perf_counter() - began) * 100)
    return statistics.median(values)
