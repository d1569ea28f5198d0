"""Our pull through NIXL beside bare NIXL doing the same work its usual way, over one transport."""

from __future__ import annotations

import os
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import timing, work
from bench.ours import OWNER_ID, Ours, owner, register
from bench.rival_nixl import Nixl
from bench.timing import Goal, Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

OURS, BARE = "llm-datadist (nixl)", "bare NIXL"
TRANSPORTS = {"tcp": "tcp", "shm": "shm,cma,self,tcp"}
_TENSORS = 122


class Consecutive(work.Case):
    """All blocks in order: neighbours on both sides."""

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.arange(self.count)
        return order, order.copy()


def owner_nixl(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="nixl", pool=False)


class OursNixl(Ours):
    """Forced onto NIXL."""

    name = OURS
    backend = "nixl"

    @staticmethod
    def owner_body() -> Any:
        return owner_nixl

    def link_again(self) -> None:
        from llm_datadist import LLMClusterInfo, LLMStatusCode  # noqa: PLC0415

        info = LLMClusterInfo()
        info.remote_cluster_id = OWNER_ID
        info.append_local_ip_info("127.0.0.1", 0)
        info.append_remote_ip_info(*self.owner.hello["address"])
        status, _ = self.instance.link_clusters([info], 10_000)
        if status != LLMStatusCode.LLM_SUCCESS:
            raise RuntimeError("cannot link again")

    def unlink(self) -> None:
        from llm_datadist import LLMClusterInfo  # noqa: PLC0415

        info = LLMClusterInfo()
        info.remote_cluster_id = OWNER_ID
        self.instance.unlink_clusters([info])


class BareNixl(Nixl):
    """As `bench.rival_nixl`, whatever transport the environment says."""

    name = BARE

    def register_and_connect(self, total: int) -> None:
        each = total // _TENSORS // 4096 * 4096
        first = work.address(self.local)
        rows = [(first + index * each, each, 0, "") for index in range(_TENSORS)]
        registered = self._agent.register_memory(rows, "DRAM")
        self._remote = self._agent.add_remote_agent(self.owner.hello["metadata"])
        self._agent.make_connection(self._remote)
        self._registered = registered

    def disconnect_first(self) -> None:
        self._agent.remove_remote_agent(self._remote)

    def disconnect(self) -> None:
        self._agent.deregister_memory(self._registered)
        self._agent.remove_remote_agent(self._remote)


class NixlComparison:
    """The comparison; each side has its own owner process, the local buffer is shared."""

    def __init__(self, rounds: int, scale: float, transport: str) -> None:
        self.rounds, self.scale = max(rounds, 5), scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        os.environ["UCX_TLS"] = TRANSPORTS[transport]  # before UCX is loaded, here and in owners
        self.local = work.buffer(work.whole_mib(512 * work.MIB * scale))
        self.ours, self.bare = OursNixl(self.local), BareNixl(self.local)

    def close(self) -> None:
        self.ours.close()
        self.bare.close()

    def run(self) -> None:
        total = len(self.local)
        for case, wanted in (
            (work.Case("pull 32 KiB, random", 32 << 10, total), 1.0),
            (work.Case("pull 4 KiB, random", 4 << 10, total), 1.2),
            (Consecutive("pull 32 KiB, in order", 32 << 10, total, seed=8), 1.5),
        ):
            self._pulls(case, wanted)
        self._pushes(work.Case("push 32 KiB, random", 32 << 10, total))
        self._small()
        self._setup(total)
        channel = self.ours.describe()["channel"]
        print(channel)

    def _pulls(self, case: work.Case, wanted: float) -> None:
        for contender in (self.ours, self.bare):
            contender.prepare(case)
            seed = case.block_bytes + len(contender.name)
            contender.owner.ask("fill", seed)
            self.local[:] = 0
            contender.read(case)
            source = np.empty(case.total_bytes, np.uint8)
            work.fill(source, seed)
            src, dst = case.blocks()
            shape = (case.count, case.block_bytes)
            if not (self.local.reshape(shape)[dst] == source.reshape(shape)[src]).all():
                raise RuntimeError(f"{contender.name}: {case.name}: wrong bytes")
        self._alternate(
            case, {c.name: partial(c.read, case) for c in (self.ours, self.bare)}, wanted
        )

    def _pushes(self, case: work.Case) -> None:
        for contender in (self.ours, self.bare):
            contender.prepare(case)
        self._alternate(
            case, {c.name: partial(c.write, case) for c in (self.ours, self.bare)}, None
        )

    def _alternate(
        self, case: work.Case, runs: dict[str, Callable[[], object]], wanted: float | None
    ) -> None:
        self.rows += timing.alternate(case.name, case.total_bytes, runs, self.rounds)
        if wanted is not None:
            self.goals.append(Goal(case.name, OURS, BARE, wanted))

    def _small(self) -> None:
        one = work.Case("one 4 KiB block", 4096, 4096)
        for contender in (self.ours, self.bare):
            contender.prepare(one)
            values = timing.latencies(partial(contender.read, one), 1000)
            self.rows.append(
                Row("one 4 KiB block, p50", contender.name, "us", [timing.percentile(values, 50)])
            )
        self.goals.append(Goal("one 4 KiB block, p50", OURS, BARE, 1 / 1.5))

    def _setup(self, total: int) -> None:
        """Register 122 tensors and connect; both processes and agents are there already."""
        name = f"register {_TENSORS} tensors and link"
        times: dict[str, list[float]] = {OURS: [], BARE: []}
        usable = total // _TENSORS // 4096 * 4096 * _TENSORS
        self.bare.disconnect_first()
        for _ in range(self.rounds):
            self.ours.unlink()
            begin = time.perf_counter_ns()
            cache = register(self.ours.instance, work.address(self.local), usable, 4096, _TENSORS)
            self.ours.link_again()
            times[OURS].append((time.perf_counter_ns() - begin) / 1e3)
            self.ours.instance.cache_manager.unregister_cache(cache.cache_id)
            begin = time.perf_counter_ns()
            self.bare.register_and_connect(total)
            times[BARE].append((time.perf_counter_ns() - begin) / 1e3)
            self.bare.disconnect()
        for contender, values in times.items():
            self.rows.append(Row(name, contender, "us", [statistics.median(values)]))
        self.goals.append(Goal(name, OURS, BARE, 1 / 1.2))
