"""The size of /dev/shm, which NIXL and serving engines use; pools of this library do not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.finding import ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["shared_memory"]

_LEAST_MIB = 256


def shared_memory(
    directory: Path = Path("/dev/shm"), least_mib: int = _LEAST_MIB
) -> Iterator[Finding]:
    """Check that shared memory is there, and not as small as the default of containers.

    Args:
        directory: Where it is mounted.
        least_mib: What is enough.
    """
    subject = str(directory)
    remedy = "make it larger: --shm-size=1g (docker), an emptyDir of medium Memory (Kubernetes)"
    try:
        found = os.statvfs(directory)
    except OSError as error:
        yield warning(
            subject, f"cannot be used: {error.strerror}", f"mount a tmpfs there; {remedy}"
        )
        return
    total, free = (count * found.f_frsize >> 20 for count in (found.f_blocks, found.f_bavail))
    seen = f"{free:,} MiB free of {total:,} MiB"
    if free < least_mib:
        yield warning(subject, f"{seen}: NIXL (UCX) and serving engines may run out of it", remedy)
    else:
        yield ok(subject, seen)
