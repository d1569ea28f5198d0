"""Detect standard modules that gevent or eventlet has patched."""

from __future__ import annotations

import _thread
import select
import socket
import sys
from typing import Final

from llm_datadist._errors import LLMStatusCode, fail

__all__ = ["check_not_patched"]

_INSTEAD: Final = {
    "gevent": "gevent.monkey.patch_all(thread=False, socket=False, select=False, ssl=False)",
    "eventlet": "eventlet.monkey_patch(thread=False, socket=False, select=False)",
}


def check_not_patched() -> None:
    """Refuse a process whose threads or sockets were replaced by cooperative ones.

    The control thread and its event loop need threads of the operating system. With cooperative
    threads they would run in the caller's thread, which waits for them.

    Raises:
        LLMException: LLM_FAILED.
    """
    ssl = sys.modules.get("ssl")  # what is not imported is not patched
    used = {
        "thread": _thread.start_new_thread,
        "socket": socket.socket,
        "select": select.select,
    }
    if ssl is not None:
        used["ssl"] = ssl.SSLContext
    owners = {name: str(object_.__module__).partition(".")[0] for name, object_ in used.items()}
    patched = [name for name, owner in owners.items() if owner in _INSTEAD]
    if patched:
        owner = owners[patched[0]]
        raise fail(
            LLMStatusCode.LLM_FAILED,
            "init",
            f"{owner} has patched {', '.join(patched)} of this process, and the control thread "
            "needs the original ones",
            f"use a process that is not patched, or patch it with {_INSTEAD[owner]}",
        )
