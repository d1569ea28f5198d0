"""Remedies, for error texts, when the system refuses a resource."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from llm_datadist._control.threads import REMEDY

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["limit_of", "memory_remedy"]


_LIMITS: Final[Mapping[int, str]] = {
    errno.EMFILE: "raise the limit of descriptors (ulimit -n, LimitNOFILE=)",
    errno.ENFILE: "raise the limit of descriptors of the machine (fs.file-max)",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), which holds for memory files too",
    errno.ENOMEM: "free memory, or raise the limit of address space (ulimit -v) or of the cgroup",
    errno.EAGAIN: REMEDY,
}
_DENIED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})


def limit_of(error: OSError, otherwise: str) -> str:
    """Return the remedy for a limit of the system that was reached."""
    return _LIMITS.get(error.errno or 0, otherwise)


def memory_remedy(error: OSError) -> str:
    """Return the remedy when the system refuses memory files or event descriptors."""
    if error.errno in _DENIED:
        return "let the sandbox of this process (seccomp) allow memfd_create and eventfd"
    return limit_of(error, "free memory or address space")
