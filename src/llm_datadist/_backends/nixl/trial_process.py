"""The program of a trial process: it loads metadata of peers, and may end while it does.

Started by `trial`, by its path, so that it imports nothing but the wheel. Frames go both ways over
what were standard input and output: bytes u32 little-endian, then so many bytes. The first frame is
JSON with what to load the wheel with; its answer is empty, or says why that does not work. Then
each round is a frame of JSON, the agent's name and the number of pieces, and the pieces, each in a
frame; its answer is JSON, the number of pieces that were loaded, why the next one was not, and
whether the process ends now.

It ends after a piece that was refused: the engine may remember half of it.
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
"""Nothing that is loaded takes so long; who asked has given up long before."""


def write_frame(stream: IO[bytes], body: bytes) -> None:
    """Send a frame."""
    stream.write(_LENGTH.pack(len(body)) + body)


def read_frame(stream: IO[bytes]) -> bytes:
    """Read a frame; EOFError when the other end is gone."""
    header = stream.read(_LENGTH.size)
    body = stream.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""
    if len(header) != _LENGTH.size or len(body) != _LENGTH.unpack(header)[0]:
        raise EOFError
    return body


def _take_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the engine's own words, and its last ones, off the frames and the terminal."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for each in (0, 1, 2):
        os.dup2(null, each)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return questions, answers


def _make_agent(start: dict[str, Any]) -> Any:  # noqa: ANN401 - the bindings have no types
    sys.path[:] = start["path"]
    # Without its package, which takes longer to import than all the rest.
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
    """What has been loaded: a peer is connected to once, since the engine never quite lets go."""

    def __init__(self, agent: Any) -> None:  # noqa: ANN401 - the bindings have no types
        self._agent = agent
        self._connections: dict[str, bytes] = {}
        self._num_pieces = 0

    def load(self, name: str, pieces: list[bytes]) -> tuple[int, str]:
        """Load a connection and what comes after it; return how many, and why the next one not."""
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
        """Whether a new process should begin with none."""
        return len(self._connections) > _MAX_PEERS or self._num_pieces > _MAX_PIECES


def _wait(questions: IO[bytes], parent: int) -> None:
    """Wait for a question; end with the process that asks, however that ends."""
    while not select.select([questions], [], [], _LOOK_S)[0]:
        if os.getppid() != parent:
            raise EOFError


def main() -> None:
    """Answer until the other end closes."""
    parent = os.getppid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    questions, answers = _take_streams()

    def answer(body: bytes) -> None:
        write_frame(answers, body)
        answers.flush()

    try:
        try:
            peers = _Peers(_make_agent(json.loads(read_frame(questions))))
        except EOFError:
            raise
        except Exception as error:
            answer(f"{type(error).__name__}: {error}".encode())
            return
        answer(b"")
        is_last = False
        while not is_last:
            _wait(questions, parent)
            signal.alarm(_ROUND_S)
            name, count = json.loads(read_frame(questions))
            loaded, why_not = peers.load(name, [read_frame(questions) for _ in range(count)])
            is_last = bool(why_not) or peers.are_many
            answer(json.dumps([loaded, why_not, is_last]).encode())
            signal.alarm(0)
    except (EOFError, BrokenPipeError):
        pass


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # the engine is not worth an orderly end
