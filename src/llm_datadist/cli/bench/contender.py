"""Contender of a comparison, with an owner process that holds the remote memory."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from llm_datadist.cli.bench import hosts, processes, work

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from llm_datadist.cli.bench.work import Case, Memory

__all__ = ["Contender", "Owner", "serve"]

_END_SECONDS = 10.0


class Contender(ABC):
    """Moves cases between a local buffer and an owner's buffer of the same size.

    Attributes:
        name: As reports have it.
        local: The local buffer.
        owner: The process that holds the other buffer.
    """

    name: str

    def __init__(self, local: Memory) -> None:
        self.local = local
        self.owner: Owner = Owner(self.owner_body(), len(local))

    @staticmethod
    @abstractmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Function that runs in the owner process: sends what the other side needs, then serves."""

    @abstractmethod
    def prepare(self, case: Case) -> None:
        """Do what users do once per cache, not once per transfer. The case before has ended."""

    @abstractmethod
    def read(self, case: Case) -> None:
        """Transfer from the owner's buffer to the local one, as users do."""

    def write(self, case: Case) -> None:
        """Transfer to the owner's buffer."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return the facts of its link, if it has one."""
        return {}

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that it has, beside the one that it is in."""
        return [self.owner.pid]

    def check_read(self, case: Case, seed: int | None = None) -> None:
        """Prepare the case, and make a read of which every byte is checked.

        Args:
            case: The case.
            seed: Of the pattern that the owner's buffer then has, if it matters.

        Raises:
            RuntimeError: A byte is wrong.
        """
        if seed is None:
            seed = case.block_bytes + len(self.name)
        self.owner.ask("fill", seed)  # first: an owner with a pool copies its buffer into it
        self.prepare(case)
        self.local[: case.total_bytes] = 0
        self.read(case)
        if not work.has_arrived(self.local, case, seed):
            raise RuntimeError(f"pull {case.name}: wrong bytes")

    def check_write(self, case: Case) -> None:
        """Make a write of the case that was prepared; the owner checks every byte.

        Raises:
            RuntimeError: A byte is wrong.
        """
        seed = case.block_bytes + 1
        work.fill(self.local[: case.total_bytes], seed)
        self.write(case)
        if not self.owner.ask("arrived", (case, seed)):
            raise RuntimeError(f"push {case.name}: wrong bytes")

    def close(self) -> None:
        """End the owner process."""
        self.owner.close()


class Owner:
    """The process that holds the other buffer; it answers small commands over a pipe.

    Attributes:
        hello: What it sent first.
    """

    def __init__(self, body: Callable[[Connection, Memory], None], size: int) -> None:
        self._process, self._pipe = processes.start(
            hosts.executable(hosts.OWNER), _owner_main, body, size, daemon=True
        )
        try:
            self.hello: Any = processes.receive(self._process, self._pipe)
        except BaseException:
            self._process.kill()
            self._process.join()
            raise

    @property
    def pid(self) -> int:
        """Id of the process."""
        return int(self._process.pid or 0)

    def ask(self, command: str, argument: object = None) -> Any:  # noqa: ANN401 - of a command
        """Return the answer to a command of `serve`.

        Raises:
            RuntimeError: The command failed, or the process has ended.
        """
        self._pipe.send((command, argument))
        return processes.receive(self._process, self._pipe)

    def close(self) -> None:
        """End the process, by force if it does not end."""
        try:
            self._pipe.send(("stop", None))
            self._process.join(_END_SECONDS)
        except OSError:
            pass  # it has ended
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _owner_main(pipe: Connection, body: Callable[[Connection, Memory], None], size: int) -> None:
    try:
        body(pipe, work.buffer(size))
    except Exception as error:
        pipe.send(RuntimeError(f"{error}\n{traceback.format_exc()}"))


def serve(pipe: Connection, memory: Memory, **commands: Callable[[Any], Any]) -> None:
    """Answer commands until the one to stop.

    `fill` gives the buffer a pattern, `arrived` says whether it has the bytes of a case, and `run`
    calls a function of a module.
    """
    own: dict[str, Callable[[Any], Any]] = {
        "fill": lambda seed: work.fill(memory, seed),
        "arrived": lambda case_and_seed: work.has_arrived(memory, *case_and_seed),
        "run": lambda function: function(),
    }
    while True:
        command, argument = pipe.recv()
        if command == "stop":
            return
        pipe.send((own | commands)[command](argument))
