"""RDMA devices (InfiniBand, RoCE, EFA), read from sysfs; no verb is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.finding import ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["SYSFS", "device_names", "rdma"]

SYSFS = Path("/sys/class/infiniband")
_VERBS = Path("/dev/infiniband")


def device_names(sysfs: Path = SYSFS) -> list[str]:
    """Return the names of this host's RDMA devices."""
    try:
        return sorted(entry.name for entry in sysfs.iterdir())
    except OSError:
        return []


def rdma(sysfs: Path = SYSFS, verbs: Path = _VERBS) -> Iterator[Finding]:
    """Check that each device has an active port, and that this process can open it.

    Args:
        sysfs: Folder of the devices.
        verbs: Folder of the device files.
    """
    subject, names = "RDMA", device_names(sysfs)
    if not names:
        yield ok(subject, "no device: between hosts everything moves over TCP")
        return
    seen = "; ".join(f"{name}: {', '.join(_ports(sysfs / name)) or 'no port'}" for name in names)
    if not any("ACTIVE" in port for name in names for port in _ports(sysfs / name)):
        yield warning(
            subject,
            f"no port is active ({seen})",
            "check cable, switch and subnet manager (ibstat); until then transfers use TCP",
        )
    elif not any(os.access(path, os.R_OK | os.W_OK) for path in verbs.glob("uverbs*")):
        yield warning(
            subject,
            f"{seen}, and {verbs} has no device file that this process may open",
            "pass the devices into the container (--device /dev/infiniband, or a device plugin), "
            "or add the user to their group",
        )
    else:
        yield ok(subject, seen)


def _ports(device: Path) -> list[str]:
    """Return state, kind and rate of each port."""
    return [
        " ".join(filter(None, (_read(port / name) for name in ("state", "link_layer", "rate"))))
        for port in sorted(device.glob("ports/*"))
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip().rpartition(": ")[2]
    except OSError:
        return ""
