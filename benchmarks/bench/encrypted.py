"""What encryption costs: no TLS, the control connection inside TLS, and the lanes, too."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import timing, work
from bench.ours import OursTcp, owner
from bench.same_host import cases
from bench.tcp import cpu_seconds_per_gib, link_p50
from bench.timing import Goal, Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from bench.contender import Contender

_FILES = "LDD_BENCH_TLS"  # the environment reaches the owner processes
_OPENSSL = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "
    "-subj /CN=benchmark -keyout key.pem -out cert.pem"
)


def properties(*, lanes: bool) -> dict[str, object]:
    """Properties of LLMConfig; one certificate, which is its own authority, serves both ends."""
    directory = Path(os.environ[_FILES])
    cert = str(directory / "cert.pem")
    key = str(directory / "key.pem")
    return {"tls_cert": cert, "tls_key": key, "tls_ca": cert, "tls_lanes": lanes}


def owner_tls(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="tcp", pool=False, **properties(lanes=False))


def owner_encrypted(pipe: Connection, memory: np.ndarray) -> None:
    owner(pipe, memory, backend="tcp", pool=False, **properties(lanes=True))


class OursTls(OursTcp):
    """The control connection inside TLS, lanes outside."""

    name = "TLS, plain lanes"

    def __init__(self, local: np.ndarray) -> None:
        self.properties = properties(lanes=False)
        super().__init__(local)

    @staticmethod
    def owner_body() -> Any:
        return owner_tls


class OursEncrypted(OursTcp):
    """Everything inside TLS."""

    name = "TLS, encrypted lanes"

    def __init__(self, local: np.ndarray) -> None:
        self.properties = properties(lanes=True)
        super().__init__(local)

    @staticmethod
    def owner_body() -> Any:
        return owner_encrypted


class Encrypted:
    """The comparison over loopback; every contender has its own owner process."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds, self.scale = rounds, scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._files = tempfile.TemporaryDirectory()
        os.environ[_FILES] = self._files.name
        subprocess.run(_OPENSSL.split(), cwd=self._files.name, check=True, capture_output=True)
        self.local = work.buffer(int(512 * work.MIB * scale))
        kinds = (OursTcp, OursTls, OursEncrypted)
        self.contenders: list[OursTcp] = [kind(self.local) for kind in kinds]

    def close(self) -> None:
        for contender in self.contenders:
            contender.close()
        self._files.cleanup()

    def run(self) -> None:
        for case in cases(self.scale):
            for contender in self.contenders:
                contender.prepare(case)
                self._verify(contender, case)
            self._alternate(f"pull {case.name}", case, lambda each, case=case: each.read(case))
            self._alternate(f"push {case.name}", case, lambda each, case=case: each.write(case))
            for contender in self.contenders:
                used = cpu_seconds_per_gib(contender, case)
                self.rows.append(Row(f"CPU per GiB, pull {case.name}", contender.name, "us", used))
        self._small_calls()

    def _alternate(self, name: str, case: work.Case, move: Callable[[Contender], None]) -> None:
        runs = {each.name: (lambda each=each: move(each)) for each in self.contenders}
        self.rows += timing.alternate(name, case.total_bytes, runs, self.rounds)

    def _small_calls(self) -> None:
        one = work.Case("one 4 KiB block", 4096, 4096)
        for each in self.contenders:
            each.prepare(one)
            idle = timing.latencies(lambda each=each: each.read(one), 2000)
            each.owner.ask("busy", True)
            busy = timing.latencies(lambda each=each: each.read(one), 200)
            each.owner.ask("busy", False)
            self.rows += [
                Row("one 4 KiB block, p50", each.name, "us", [timing.percentile(idle, 50)]),
                Row("one 4 KiB block, p99", each.name, "us", [timing.percentile(idle, 99)]),
                Row(
                    "the same, p50, while the owner's interpreter spins",
                    each.name,
                    "us",
                    [timing.percentile(busy, 50)],
                ),
                Row("link_clusters p50", each.name, "us", [link_p50(each)]),
            ]

    def _verify(self, contender: Contender, case: work.Case) -> None:
        seed = case.block_bytes + len(contender.name)
        contender.owner.ask("fill", seed)
        self.local[: case.total_bytes] = 0
        contender.read(case)
        if not np.array_equal(self.local[: case.total_bytes], work.expected(case, seed)):
            raise RuntimeError(f"{contender.name}: pull {case.name}: wrong bytes")
