"""Program of the trial process, which loads metadata of peers and may crash while it does.

`trial` starts it by its path, so that it imports nothing but NIXL. Frames (length as little-endian
u32, then the bytes) travel in both directions over the original standard input and output. The
first frame is JSON: how to load NIXL. The reply is empty, or says why that failed. Then each round
is a JSON frame (the agent's name, the number of pieces) and one frame for each piece. The reply is
JSON: the number of pieces loaded, why the next one was not, and whether the process ends now.

The process ends after a refused piece: the engine may have kept part of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import select
import signal
import struct
import sys
from typing import IO, Any

_LENGTH = struct.Struct("<I")
_LOOK_S = 5.0
_MAX_PEERS = 512
_MAX_PIECES = 100_000
_ROUND_S = 30
"""No load takes this long; the parent has given up long before."""


def write_frame(stream: IO[bytes], body: bytes) -> None:
    """Write a frame."""
    stream.write(_LENGTH.pack(len(body)) + body)


def read_frame(stream: IO[bytes]) -> bytes:
    """Read a frame; EOFError if the other end has closed."""
    header = stream.read(_LENGTH.size)
    body = stream.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""
    if len(header) != _LENGTH.size or len(body) != _LENGTH.unpack(header)[0]:
        raise EOFError
    return body


def _take_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the engine's output away from the frames and the terminal; write no core file."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for each in (0, 1, 2):
        os.dup2(null, each)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return requests, replies


def _make_agent(start: dict[str, Any]) -> Any:  # noqa: ANN401 - the bindings have no types
    sys.path[:] = start["path"]
    # Without its package, whose import takes longer than everything else.
    spec = importlib.util.spec_from_file_location(start["bindings"], start["file"])
    if spec is None or spec.loader is None:
        raise ImportError(f"{start['file']} is no module")
    bindings: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bindings)
    config = bindings.nixlAgentConfig()
    config.useProgThread = False
    config.useListenThread = False
    config.captureTelemetry = False
    agent = bindings.nixlAgent(f"llm-datadist-trial-{os.getpid()}", config)
    agent.createBackend(start["engine"], start["params"])
    return agent


class _Peers:
    """Loaded metadata. Connects to each peer once: the engine keeps connections for ever."""

    def __init__(self, agent: Any) -> None:  # noqa: ANN401 - the bindings have no types
        self._agent = agent
        self._connections: dict[str, bytes] = {}
        self._num_pieces = 0

    def load(self, name: str, pieces: list[bytes]) -> tuple[int, str]:
        """Load a connection and its regions; return how many, and why the next one failed."""
        self._num_pieces += len(pieces)
        for number, piece in enumerate(pieces):
            if number == 0 and self._connections.get(name) == piece:
                continue
            try:
                loaded = self._agent.loadRemoteMD(piece)
            except Exception as error:
                return number, f"{type(error).__name__}: {error}"
            if loaded not in (name, name.encode()):
                return number, "it names another agent"
            self._connections.setdefault(name, piece)
        return len(pieces), ""

    @property
    def are_many(self) -> bool:
        """Whether a new process should replace this one."""
        return len(self._connections) > _MAX_PEERS or self._num_pieces > _MAX_PIECES


def _wait(requests: IO[bytes], parent: int) -> None:
    """Wait for a request; EOFError when the parent has ended."""
    while not select.select([requests], [], [], _LOOK_S)[0]:
        if os.getppid() != parent:
            raise EOFError


def main() -> None:
    """Serve requests until the other end closes."""
    parent = os.getppid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    requests, replies = _take_streams()

    def reply(body: bytes) -> None:
        write_frame(replies, body)
        replies.flush()

    try:
        try:
            peers = _Peers(_make_agent(json.loads(read_frame(requests))))
        except EOFError:
            raise
        except Exception as error:
            reply(f"{type(error).__name__}: {error}".encode())
            return
        reply(b"")
        is_last = False
        while not is_last:
            _wait(requests, parent)
            signal.alarm(_ROUND_S)
            name, count = json.loads(read_frame(requests))
            loaded, why_not = peers.load(name, [read_frame(requests) for _ in range(count)])
            is_last = bool(why_not) or peers.are_many
            reply(json.dumps([loaded, why_not, is_last]).encode())
            signal.alarm(0)
    except (EOFError, BrokenPipeError):
        pass


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # skip the engine's own cleanup
