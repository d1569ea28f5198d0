"""Cost of end-to-end checksums: the same transfers with and without them, in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import timing
from bench.timing import Goal
from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.datadist import Datadist, DatadistPool, DatadistTcp
from llm_datadist.cli.bench.driver import prepare
from llm_datadist.cli.bench.timing import Row, latencies, percentile

if TYPE_CHECKING:
    from llm_datadist.cli.bench.contender import Contender

MIB = work.MIB
WANTED = 0.6


class CheckedDatadist(Datadist):
    name = "checked"
    checksum = "crc32c"


class CheckedPool(DatadistPool):
    name = "checked"
    checksum = "crc32c"


class CheckedTcp(DatadistTcp):
    name = "checked"
    checksum = "crc32c"


PATHS: dict[str, tuple[type[Datadist], type[Datadist]]] = {
    "same host": (Datadist, CheckedDatadist),
    "pool": (DatadistPool, CheckedPool),
    "tcp": (DatadistTcp, CheckedTcp),
}


class Checksums:
    """The comparison; every contender has its own owner process, the local buffer is shared."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds, self.scale = rounds, scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self.local = work.buffer(work.whole_mib(256 * MIB * scale))
        self._open: list[Contender] = []

    def run(self) -> None:
        for path, kinds in PATHS.items():
            pair = [kind(self.local) for kind in kinds]
            self._open = list(pair)
            for block, total in ((MIB, 256), (32 << 10, 256), (4 << 10, 128)):
                size = int(total * MIB * self.scale) // block * block
                name = f"{block >> 20} MiB" if block >= MIB else f"{block >> 10} KiB"
                case = work.Case(name, block, max(size, 2 * block))
                self._compare(path, "pull", case, pair)
                if path != "pool":
                    self._compare(path, "push", case, pair)
            self._small(path, pair)
            self.close()

    def close(self) -> None:
        for contender in self._open:
            contender.close()
        self._open = []

    def _compare(self, path: str, operation: str, case: work.Case, pair: list[Any]) -> None:
        name = f"{path}: {operation} {case.name}"
        for contender in pair:
            prepare(contender, case)
        calls = {
            label: (lambda c=contender: c.read(case) if operation == "pull" else c.write(case))
            for label, contender in zip(("unchecked", "checked"), pair, strict=True)
        }
        self.rows += timing.alternate(name, case.total_bytes, calls, self.rounds)
        self.goals.append(Goal(name, "checked", "unchecked", WANTED if operation == "pull" else 0))

    def _small(self, path: str, pair: list[Any]) -> None:
        one = work.Case("one 4 KiB block", 4096, 4096)
        for label, contender in zip(("unchecked", "checked"), pair, strict=True):
            contender.prepare(one)
            values = latencies(lambda c=contender: c.read(one), 2000)
            p50 = percentile(values, 50)
            self.rows.append(Row(f"{path}: one 4 KiB block, p50", label, "us", [p50]))
