"""What to do about what the system refuses."""

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
    """Return what to do about a limit that the system has refused something for."""
    return _LIMITS.get(error.errno or 0, otherwise)


def memory_remedy(error: OSError) -> str:
    """Return what to do when memory files or events, which need no rights, are refused."""
    if error.errno in _DENIED:
        return "let the sandbox of this process (seccomp) allow memfd_create and eventfd"
    return limit_of(error, "free memory or address space")
