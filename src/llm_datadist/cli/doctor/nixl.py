"""NIXL, the engine for RDMA and for memory of GPUs on other hosts: its wheel and its plugins."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.children import ChildFailed, run_json
from llm_datadist.cli.doctor.finding import ok, warning
from llm_datadist.cli.doctor.rdma import SYSFS, device_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["nixl"]

_WHEELS = {"nixl-cu12": "nixl_cu12", "nixl-cu13": "nixl_cu13"}
_OLDEST = (1, 5)
_INSTALL = "pip install 'llm-datadist[nixl]' (CUDA 13: llm-datadist[nixl-cu13])"
_PROBE = "llm_datadist.cli.doctor.nixl_probe"


def nixl(sysfs: Path = SYSFS) -> Iterator[Finding]:
    """Load the installed wheel in a process of its own, with its UCX.

    Args:
        sysfs: Folder of the RDMA devices.
    """
    subject, has_rdma = "NIXL", bool(device_names(sysfs))
    installed = _installed()
    if installed is None:
        if has_rdma:
            seen = "not installed, so that RDMA devices are not used"
            yield warning(subject, seen, f"install it: {_INSTALL}")
        else:
            yield ok(subject, "not installed; only RDMA, and GPUs of other hosts, need it")
        return
    name, release = installed
    seen = f"{name} {release}"
    if _numbers(release) < _OLDEST:
        yield warning(subject, f"{seen} is too old", f"install 1.5 or later: {_INSTALL}")
        return
    rdma = ["rdma"] if has_rdma else []
    try:
        found = run_json([sys.executable, "-m", _PROBE, _WHEELS[name], *rdma])
    except ChildFailed as error:
        found = {"problem": f"the process that loads it: {error}"}
    if found["problem"]:
        yield warning(
            subject,
            f"{seen} cannot be used ({found['problem']})",
            f"install a wheel that fits this machine: {_INSTALL}; without it links use TCP",
        )
    else:
        yield ok(subject, f"{seen}, plugins {', '.join(found['plugins'])}; UCX starts")


def _installed() -> tuple[str, str] | None:
    """Return name and version of the installed wheel."""
    for name in _WHEELS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def _numbers(release: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else ()
