"""NIXL's Python bindings: finds and loads the installed wheel on first use.

Uses the bindings directly, not `nixl_agent`: only they let the progress thread sleep between polls
(that of `nixl_agent` spins, one core per process even when idle), and importing `nixl_agent` sets
up logging for the whole process.

Tested with nixl-cu12 and nixl-cu13 1.5.0 and 1.5.1. Releases before 1.4 import torch; 1.4 crashes
the process when a peer's agent is replaced, which is how a late transfer is ended.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_datadist._backends.base import Unavailable
from llm_datadist._options.environment import defaults_in_environment, environment_with

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES: Final = (("nixl_cu12", "nixl-cu12"), ("nixl_cu13", "nixl-cu13"))
_OLDEST: Final = (1, 5)
_PROGRESS_PAUSE_US: Final = 50
_RDMA_DEVICES: Final = Path("/sys/class/infiniband")

NUM_POSTING_THREADS: Final = min(4, len(os.sched_getaffinity(0)))
"""Number of threads that can post transfers without waiting for each other."""

_DEFAULTS: Final = {"UCX": {"num_workers": str(NUM_POSTING_THREADS)}}
_loading = threading.Lock()


def has_rdma() -> bool:
    """Return whether this host has an RDMA device (InfiniBand, RoCE, EFA)."""
    try:
        return any(_RDMA_DEVICES.iterdir())
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class NixlBindings:
    """NIXL's bindings, loaded.

    Attributes:
        module: The extension module.
        distribution: Name and version of the wheel.
    """

    module: Any
    distribution: str

    def make_agent(self, name: str, engine: str, params: Mapping[str, str]) -> tuple[Any, int]:
        """Make an agent with one engine; return both.

        Raises:
            Unavailable: The wheel has no such engine, or it cannot start.
        """
        config = self.module.nixlAgentConfig()
        config.useProgThread = True
        config.useListenThread = False
        config.pthrDelay = _PROGRESS_PAUSE_US
        config.syncMode = self.module.NIXL_THREAD_SYNC_RW
        config.captureTelemetry = False
        try:
            agent = self.module.nixlAgent(name, config)
            if engine not in agent.getAvailPlugins():
                raise Unavailable(f"{self.distribution} has no engine {engine}")
            with _loading, defaults_in_environment(_ucx_settings()):
                return agent, agent.createBackend(engine, _DEFAULTS.get(engine, {}) | dict(params))
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"engine {engine} of {self.distribution}: {error}") from error

    def trial_environment(self) -> dict[str, str]:
        """Return the environment of the trial process, in which UCX reports no fatal errors."""
        return environment_with(_ucx_settings() | {"UCX_HANDLE_ERRORS": "none"})

    def trial_settings(self, engine: str, params: Mapping[str, str]) -> dict[str, object]:
        """Return what the trial process needs to make an agent with the same engine."""
        few = {"num_workers": "1"} if engine == "UCX" else {}
        return {
            "bindings": self.module.__name__,
            "file": self.module.__file__,
            "path": list(sys.path),
            "engine": engine,
            "params": dict(params) | few,
        }


def load_bindings() -> NixlBindings:
    """Import the installed wheel.

    Raises:
        Unavailable: None is installed, or it cannot be imported or is too old.
    """
    from importlib import metadata  # noqa: PLC0415 - rarely needed, and slow to import

    reasons = []
    for module, distribution in _PACKAGES:
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if _release(version) < _OLDEST:
            reasons.append(f"{distribution} {version} is too old, 1.5 or later is needed")
            continue
        try:
            loaded = importlib.import_module(f"{module}._bindings")
        except ImportError as error:
            reasons.append(f"{distribution} cannot be imported ({error})")
        else:
            return NixlBindings(loaded, f"{distribution} {version}")
    why = "; ".join(reasons) or "NIXL is not installed"
    raise Unavailable(f"{why}; install it with: pip install llm-datadist[nixl]")


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else ()


def _ucx_settings() -> dict[str, str]:
    """Return the settings that UCX reads while it is loaded.

    UCX must not handle the signals of bad memory, which guarded copies need. Threads that wait for
    its locks must sleep, not spin on a core that the lock's holder may need. Its InfiniBand module
    is left out where no RDMA device exists: the wheels' copy of libnl, which only that module uses,
    crashes the process when it exits.
    """
    settings = {"UCX_ERROR_SIGNALS": "", "UCX_USE_MT_MUTEX": "y"}
    return settings if has_rdma() else settings | {"UCX_MODULES": "^ib"}
