"""Mooncake's transfer engine over TCP, peer to peer, as its users drive it from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_datadist.cli.bench import hosts, work
from llm_datadist.cli.bench.contender import Contender, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from llm_datadist.cli.bench.work import Blocks, Case, Memory

__all__ = ["Mooncake"]


def _engine(memory: Memory, end: int) -> Any:  # noqa: ANN401 - a class without types
    from mooncake.engine import TransferEngine  # noqa: PLC0415 - optional

    engine = TransferEngine()
    if engine.initialize(hosts.address(end), "P2PHANDSHAKE", "tcp", "") != 0:
        raise RuntimeError("Mooncake cannot start")
    if engine.register_memory(work.address(memory), len(memory)) != 0:
        raise RuntimeError("Mooncake cannot register the buffer")
    return engine


def _owner(pipe: Connection, memory: Memory) -> None:
    engine = _engine(memory, hosts.OWNER)
    port = engine.get_rpc_port()
    pipe.send({"session": f"{hosts.address(hosts.OWNER)}:{port}", "address": work.address(memory)})
    serve(pipe, memory)


class Mooncake(Contender):
    """Batches of blocks in one synchronous call."""

    name = "Mooncake (tcp)"

    def __init__(self, local: Memory) -> None:
        super().__init__(local)
        self._engine = _engine(local, hosts.LOCAL)
        self._blocks: tuple[Blocks, Blocks] | None = None

    @staticmethod
    def owner_body() -> Callable[[Connection, Memory], None]:
        """Return the body of an owner that registers its buffer."""
        return _owner

    def prepare(self, case: Case) -> None:
        """Keep the block lists; the buffers are registered."""
        self._blocks = case.blocks()

    def read(self, case: Case) -> None:
        """Read the case that was prepared."""
        assert self._blocks is not None
        src, dst = self._blocks
        session = self.owner.hello["session"]
        if self._engine.batch_transfer_sync_read(session, *self._lists(case, dst, src)) != 0:
            raise RuntimeError("Mooncake: the read failed")

    def write(self, case: Case) -> None:
        """Write the case that was prepared."""
        assert self._blocks is not None
        src, dst = self._blocks
        session = self.owner.hello["session"]
        if self._engine.batch_transfer_sync_write(session, *self._lists(case, src, dst)) != 0:
            raise RuntimeError("Mooncake: the write failed")

    def _lists(
        self, case: Case, local_blocks: Blocks, remote_blocks: Blocks
    ) -> tuple[list[int], list[int], list[int]]:
        local = case.addresses(work.address(self.local), local_blocks)
        remote = case.addresses(self.owner.hello["address"], remote_blocks)
        return local.tolist(), remote.tolist(), [case.block_bytes] * case.pieces
