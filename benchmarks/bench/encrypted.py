"""Cost of encryption: without TLS, with TLS on the control connection, and also on the lanes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.same_host import cases
from bench.tcp import link_p50
from bench.turns import alternate, busy_call_times, cpu_us_per_gib
from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.datadist import DatadistTcp, owner
from llm_datadist.cli.bench.driver import Driver, call_times, prepare, start
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np

    from bench.timing import Goal

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


class DatadistTls(DatadistTcp):
    """The control connection inside TLS, lanes outside."""

    name = "TLS, plain lanes"

    def __init__(self, local: np.ndarray) -> None:
        self.properties = properties(lanes=False)
        super().__init__(local)

    @staticmethod
    def owner_body() -> Any:
        return owner_tls


class DatadistEncrypted(DatadistTcp):
    """Everything inside TLS."""

    name = "TLS, encrypted lanes"

    def __init__(self, local: np.ndarray) -> None:
        self.properties = properties(lanes=True)
        super().__init__(local)

    @staticmethod
    def owner_body() -> Any:
        return owner_encrypted


class Encrypted:
    """The comparison over loopback; one contender is awake at a time."""

    def __init__(self, rounds: int, scale: float) -> None:
        self.rounds, self.scale = rounds, scale
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._files = tempfile.TemporaryDirectory()
        subprocess.run(_OPENSSL.split(), cwd=self._files.name, check=True, capture_output=True)
        size, environment = work.whole_mib(512 * work.MIB * scale), {_FILES: self._files.name}
        kinds = (DatadistTcp, DatadistTls, DatadistEncrypted)
        self._drivers = list(start(kinds, size, environment).values())

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()
        self._files.cleanup()

    def run(self) -> None:
        for case in cases(self.scale):
            for driver in self._drivers:
                driver.call(prepare, case)
            for what, name in (("read", f"pull {case.name}"), ("write", f"push {case.name}")):
                self.rows += alternate(name, case, what, self._drivers, self.rounds)
            for driver in self._drivers:
                used = [driver.call(cpu_us_per_gib, case) for _ in range(3)]
                self.rows.append(Row(f"CPU per GiB, pull {case.name}", driver.name, "us", used))
        for driver in self._drivers:
            self._small_calls(driver)

    def _small_calls(self, driver: Driver) -> None:
        p50, p99 = driver.call(call_times, 2000, (50, 99))
        (busy,) = driver.call(busy_call_times, 200, (50,))
        spun = "the same, p50, while the owner's interpreter spins"
        self.rows += [
            Row("one 4 KiB block, p50", driver.name, "us", [p50]),
            Row("one 4 KiB block, p99", driver.name, "us", [p99]),
            Row(spun, driver.name, "us", [busy]),
            Row("link_clusters p50", driver.name, "us", [driver.call(link_p50)]),
        ]
