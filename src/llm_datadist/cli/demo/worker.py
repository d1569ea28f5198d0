"""Entry of a worker process: python -m llm_datadist.cli.demo.worker CHANNEL_FD."""

from __future__ import annotations

import socket
import sys
import traceback

from llm_datadist.cli.demo.channel import Channel, Inbox
from llm_datadist.cli.demo.decode import run_decode
from llm_datadist.cli.demo.messages import Failed, Setup
from llm_datadist.cli.demo.prefill import run_prefill
from llm_datadist.cli.demo.reference import run_reference

_RUN = {"prefill": run_prefill, "decode": run_decode, "reference": run_reference}


def main() -> int:
    """Run the role of the first message until Stop."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    inbox = Inbox(channel)
    try:
        setup = inbox.get()
        if not isinstance(setup, Setup):
            raise TypeError(f"expected Setup, got {setup!r}")
        _RUN[setup.role](setup, inbox, channel)
    except Exception as problem:
        # LLMException is a RuntimeError; these errors have a text for the user.
        explained = isinstance(problem, RuntimeError | OSError | MemoryError)
        detail = "" if explained else traceback.format_exc()
        channel.send(Failed(f"{type(problem).__name__}: {problem}", detail))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
