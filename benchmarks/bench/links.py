"""Very many links of one instance over loopback: time, memory, descriptors and CPU per link."""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist import BlocksCacheKey, CacheDesc, DataType
from llm_datadist.cli.bench import datadist
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from bench.timing import Goal
    from llm_datadist import Cache, LLMDataDist
    from llm_datadist.testing import PeerGroup
    from llm_datadist.testing.member import Member

HUB = "the instance that all link"
FIRST_ID = 1000
_IDLE_SECONDS = 10.0
_SETTLE_SECONDS = 6.0  # threads that wait for another call go
_LONG_S = 1200.0
_BLOCKS, _BLOCK_BYTES = 16, 4096
_PULLS, _CALLS = 1000, 30
#: Of one process: each has a control thread, and all of them share one interpreter.
_MOST_INSTANCES = 250


class Links:
    """One hub in this process, and processes with many instances each that link it.

    The hub is the accepting end of all links. It pulls from the first peer while that is the only
    one and when there are all.
    """

    def __init__(self, links: int, processes: int, backend: str, lanes: int) -> None:
        _allow_descriptors()
        self._processes = max(processes, -(-links // _MOST_INSTANCES))
        self.links = links // self._processes * self._processes
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._backend = backend
        self._lanes = lanes
        self._hub = datadist.start(datadist.OWNER_ID, backend, lanes_per_link=lanes)
        self._cache, self._memory = _blocks(self._hub, datadist.OWNER_ID)

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
                self._lanes,
            )
            for number in range(self._processes)
        ]
        for each in crowds:
            each.receive()
        crowds[0].send("link the first")
        crowds[0].receive()
        self._measure_calls("1 link")
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
        self._measure_calls(case)
        for each in crowds:
            each.send("end")
            each.receive()

    def _measure_calls(self, case: str) -> None:
        """Time calls of the hub about the first peer; processor time is the calling thread's."""
        hub, manager = self._hub, self._hub.cache_manager
        key = BlocksCacheKey(FIRST_ID, 0)
        calls = {
            "pull of one 4 KiB block": lambda: manager.pull_blocks(key, self._cache, [3], [5]),
            "check_link_status": lambda: hub.check_link_status(FIRST_ID),
            "describe_link": lambda: hub.describe_link(FIRST_ID),
            "stats": hub.stats,
            "describe_links": hub.describe_links,
        }
        for name, call in calls.items():
            times, used = [], []
            for _ in range(_PULLS if name.startswith("pull") else _CALLS):
                began, used_before = time.perf_counter(), time.thread_time()
                call()
                used.append((time.thread_time() - used_before) * 1e6)
                times.append((time.perf_counter() - began) * 1e6)
            self._add(case, name, "us", times)
            self._add(case, f"{name}, CPU time of the caller", "us", used)

    def _add(self, case: str, what: str, unit: str, values: list[float]) -> None:
        self.rows.append(Row(f"{case}: {what}", HUB, unit, values))


def crowd(
    member: Member, first_id: int, count: int, address: tuple[str, int], backend: str, lanes: int
) -> None:
    """Body of another process: make the instances, then link and end them on command."""
    _allow_descriptors()
    instances = [
        datadist.start(first_id + number, backend, lanes_per_link=lanes) for number in range(count)
    ]
    kept = _blocks(instances[0], first_id)
    member.send("ready")
    unlinked = iter(instances)
    if member.receive(_LONG_S) == "link the first":
        member.send(_link(next(unlinked), address))
        member.receive(_LONG_S)
    member.send([_link(instance, address) for instance in unlinked])
    member.receive(_LONG_S)
    del kept
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


def _allow_descriptors() -> None:
    """Raise the limit of open files as far as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _blocks(instance: LLMDataDist, cluster_id: int) -> tuple[Cache, np.ndarray]:
    """Register a few blocks, under the cluster id as the key's; return them with their memory."""
    memory = np.zeros(_BLOCKS * _BLOCK_BYTES, np.uint8)
    desc = CacheDesc(1, [_BLOCKS, _BLOCK_BYTES], DataType.DT_UINT8)
    key = BlocksCacheKey(cluster_id, 0)
    cache = instance.cache_manager.register_blocks_cache(desc, [memory.ctypes.data], key)
    return cache, memory


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
