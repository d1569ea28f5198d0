"""NVIDIA GPUs: the driver, the devices, and whether processes can share their memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.children import ChildFailed, python, run_json
from llm_datadist.cli.doctor.finding import ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["gpus"]

_UPDATE = "reload or update the driver (nvidia-smi must work), or restart the container"


def gpus(devices: Path = Path("/dev")) -> Iterator[Finding]:
    """Ask the driver, in a process of its own.

    Args:
        devices: Folder of the device files.
    """
    subject = "GPUs"
    try:
        found = run_json(python("gpu_probe"), seconds=120)
    except ChildFailed as error:
        yield warning(subject, f"the process that asks the driver: {error}", _UPDATE)
        return
    if "missing" in found:
        if any(devices.glob("nvidia[0-9]*")):
            yield warning(
                subject,
                f"there are device files and no driver library ({found['missing']})",
                "install the driver; into a container it comes with --gpus all and "
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            )
        else:
            yield ok(subject, "no NVIDIA GPU: device memory is the host's")
    elif "problem" in found:
        yield warning(subject, f"the driver does not work: {found['problem']}", _UPDATE)
    elif not found["names"]:
        yield warning(
            subject,
            f"driver of CUDA {found['version']}, no GPU visible",
            "check CUDA_VISIBLE_DEVICES, and the devices that the container has",
        )
    else:
        names = ", ".join(found["names"])
        yield ok(subject, f"{names}; driver of CUDA {found['version']}")
        yield from _sharing(found["shared"])


def _sharing(failures: list[str]) -> Iterator[Finding]:
    """Judge whether a second process could map the memory of each GPU."""
    subject = "GPU memory sharing"
    failed = [f"GPU {index}: {text}" for index, text in enumerate(failures) if text]
    if not failed:
        yield ok(subject, "a second process can map memory of every GPU (CUDA IPC)")
    else:
        yield warning(
            subject,
            "; ".join(failed),
            "let the processes share one pid and one ipc namespace (docker --ipc=host), and keep "
            "memory free on the GPU; NIXL moves the memory otherwise, or a copy in host memory",
        )
