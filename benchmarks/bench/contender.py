"""Contender of a comparison, with an owner process that holds the remote memory."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from bench import hosts, work

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    import numpy as np

_spawn = multiprocessing.get_context("spawn")


class Contender(ABC):
    """Moves cases between a local buffer and an owner's buffer of the same size."""

    name: str

    def __init__(self, local: np.ndarray) -> None:
        self.local = local
        self.owner = Owner(self.owner_body(), len(local))

    @staticmethod
    @abstractmethod
    def owner_body() -> Callable[[Connection, np.ndarray], None]:
        """Function that runs in the owner process: sends what the other side needs, then serves."""

    @abstractmethod
    def prepare(self, case: work.Case) -> None:
        """Do what users do once per cache, not once per transfer."""

    @abstractmethod
    def read(self, case: work.Case) -> None:
        """Transfer from the owner's buffer to the local one, as users do."""

    def write(self, case: work.Case) -> None:
        """Transfer to the owner's buffer."""
        raise NotImplementedError

    def close(self) -> None:
        self.owner.close()


class Owner:
    """The process that holds the other buffer; it answers small commands over a pipe."""

    def __init__(self, body: Callable[[Connection, np.ndarray], None], size: int) -> None:
        self._pipe, child_pipe = _spawn.Pipe()
        _spawn.set_executable(hosts.executable(hosts.OWNER))
        self._process = _spawn.Process(
            target=_owner_main, args=(child_pipe, body, size), daemon=True
        )
        self._process.start()
        child_pipe.close()
        self.hello: dict[str, Any] = self._receive()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    def _receive(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, command: str, argument: object = None) -> Any:
        self._pipe.send((command, argument))
        return self._receive()

    def close(self) -> None:
        self._pipe.send(("stop", None))
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _owner_main(
    pipe: Connection, body: Callable[[Connection, np.ndarray], None], size: int
) -> None:
    memory = work.buffer(size)
    try:
        body(pipe, memory)
    except Exception as error:
        pipe.send(RuntimeError(f"{error}\n{traceback.format_exc()}"))


def serve(pipe: Connection, memory: np.ndarray, **commands: Callable[[Any], Any]) -> None:
    """Answer commands until the one to stop."""
    while True:
        command, argument = pipe.recv()
        if command == "stop":
            return
        if command == "fill":
            work.fill(memory, argument)
            pipe.send(None)
        elif command == "cpu":
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(usage.ru_utime + usage.ru_stime)
        elif command == "digest":
            pipe.send(work.digest(memory[:argument]))
        else:
            pipe.send(commands[command](argument))
