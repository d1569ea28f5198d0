"""The directory of nodes that one of them has in its memory, and the others read and write.

It is a cache of rows, each a block: peers pull all rows and push the ones that they change. The
program of the node that has it takes no part.
"""

from __future__ import annotations

import random
import struct
import threading
import time
import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from llm_datadist._errors import LLMException, LLMStatusCode, fail
from llm_datadist.aio.names import block_cache_key, cluster_id_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llm_datadist._datadist import LLMDataDist

    Rows = NDArray[np.uint8]

__all__ = ["OwnTable", "PeerTable", "decode_row", "encode_row"]

NUM_ROWS: Final = 1024
ROW_BYTES: Final = 512
_CACHE: Final = "llm_datadist.aio nodes"
_HEAD: Final = struct.Struct("<QIHH")  # id of the node, 0 = free; CRC-32; bytes of the two texts
_ATTEMPTS: Final = 50
_PAUSE_S: Final = 0.02


def encode_row(name: str, address: str) -> Rows:
    """Return the row of a node."""
    texts = name.encode(), address.encode()
    body = b"".join(texts)
    if _HEAD.size + len(body) > ROW_BYTES:
        raise ValueError(
            f"name {name!r} and address {address!r} have {len(body)} bytes; "
            f"{ROW_BYTES - _HEAD.size} is the most"
        )
    head = _HEAD.pack(cluster_id_of(name), zlib.crc32(body), *map(len, texts))
    return np.frombuffer((head + body).ljust(ROW_BYTES, b"\0"), np.uint8)


def decode_row(row: Rows) -> tuple[str, str] | None:
    """Return name and address; None if the row is free, half written, or none of these."""
    data = row.tobytes()
    cluster_id, checksum, name_bytes, address_bytes = _HEAD.unpack_from(data)
    body = data[_HEAD.size :][: name_bytes + address_bytes]
    if cluster_id == 0 or zlib.crc32(body) != checksum:
        return None
    try:
        return body[:name_bytes].decode(), body[name_bytes:].decode()
    except UnicodeDecodeError:
        return None


class _Table(ABC):
    """Rows of nodes, in any order."""

    @abstractmethod
    def read(self) -> Rows:
        """Return all rows, `[NUM_ROWS, ROW_BYTES]`."""

    @abstractmethod
    def write(self, index: int, row: Rows) -> None:
        """Replace a row."""

    def announce(self, name: str, address: str) -> None:
        """Write the address of a node, in place of an earlier one.

        Two nodes may choose the same free row at the same moment; the one whose row is not there a
        moment later, when the other one must have written its own, chooses another.

        Raises:
            LLMException: LLM_OUT_OF_MEMORY: no row is free; or as a pull or push.
        """
        row = encode_row(name, address)
        for _ in range(_ATTEMPTS):
            rows = self.read()
            index = self._index_of(rows, name)
            if index is None:
                free = np.flatnonzero(_ids(rows) == 0)
                if not len(free):
                    break
                index = int(random.choice(free))
            self.write(index, row)
            time.sleep((1 + random.random()) * _PAUSE_S)
            if (self.read()[index] == row).all():
                return
        raise fail(
            LLMStatusCode.LLM_OUT_OF_MEMORY,
            "announce",
            f"there is no row for {name!r} in {self}, which has {NUM_ROWS}",
            "use several directories, or a file",
        )

    def withdraw(self, name: str, address: str) -> None:
        """Remove a node, unless it has another address by now."""
        rows = self.read()
        index = self._index_of(rows, name)
        if index is not None and decode_row(rows[index]) == (name, address):
            self.write(index, np.zeros(ROW_BYTES, np.uint8))

    def find(self, name: str) -> str | None:
        """Return the address of a node; None if it has no row."""
        rows = self.read()
        index = self._index_of(rows, name)
        found = None if index is None else decode_row(rows[index])
        return None if found is None else found[1]

    @staticmethod
    def _index_of(rows: Rows, name: str) -> int | None:
        for index in np.flatnonzero(_ids(rows) == cluster_id_of(name)):
            found = decode_row(rows[index])
            if found is not None and found[0] == name:
                return int(index)
        return None


@final
class OwnTable(_Table):
    """A table in the memory of this node, which peers read and write.

    Args:
        instance: The node's.
    """

    def __init__(self, instance: LLMDataDist) -> None:
        self._rows = np.zeros((NUM_ROWS, ROW_BYTES), np.uint8)
        key = block_cache_key(instance.cluster_id, _CACHE)
        instance.cache_manager.register_tensors([self._rows], key)

    def __str__(self) -> str:
        return "the directory of this node"

    def read(self) -> Rows:
        return np.array(self._rows)

    def write(self, index: int, row: Rows) -> None:
        self._rows[index] = row


@final
class PeerTable(_Table):
    """The table of another node.

    Args:
        instance: Of this node.
        address: `host:port` of the other one.
        timeout_s: How long to try to link to it.

    Raises:
        LLMException: as LLMDataDist.link_peer.
    """

    def __init__(self, instance: LLMDataDist, address: str, timeout_s: float = 10.0) -> None:
        self._instance = instance
        self._address = address
        self._lock = threading.Lock()  # of the rows, for calls on several threads
        self._rows = np.zeros((NUM_ROWS + 1, ROW_BYTES), np.uint8)  # the last one is to be pushed
        self._cache = instance.cache_manager.register_tensors([self._rows], remote_accessible=False)
        self._cluster_id = self._link(timeout_s)
        self._key = block_cache_key(self._cluster_id, _CACHE)

    def __str__(self) -> str:
        return f"the directory at {self._address}"

    def read(self) -> Rows:
        every = range(NUM_ROWS)
        pull = self._instance.cache_manager.pull_blocks
        with self._lock:
            self._repeated(pull, self._key, self._cache, every, every)
            return np.array(self._rows[:NUM_ROWS])

    def write(self, index: int, row: Rows) -> None:
        push = self._instance.cache_manager.push_blocks
        with self._lock:
            self._rows[NUM_ROWS] = row
            self._repeated(push, self._key, self._cache, [NUM_ROWS], [index])

    def _repeated(self, call: Any, *arguments: Any) -> None:  # noqa: ANN401 - of two calls
        """Make a call; link again first if the link is gone."""
        try:
            call(*arguments)
        except LLMException as error:
            if error.status_code is not LLMStatusCode.LLM_NOT_YET_LINK:
                raise
            self._link(0.0)
            call(*arguments)

    def _link(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._instance.link_peer(self._address)
            except LLMException as error:
                if (
                    error.status_code is not LLMStatusCode.LLM_LINK_FAILED
                    or time.monotonic() >= deadline
                ):
                    raise
            time.sleep(_PAUSE_S)


def _ids(rows: Rows) -> NDArray[np.uint64]:
    ids: NDArray[np.uint64] = rows[:, :8].copy().view("<u8").reshape(-1)
    return ids
