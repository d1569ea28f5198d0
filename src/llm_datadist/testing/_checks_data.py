"""Backend checks: transfers move the right bytes to the right places."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._backends.outcomes import Code
from llm_datadist.testing._arena import NUM_TENSORS, TENSOR_BYTES, pattern
from llm_datadist.testing._backend_end import LINK_ID
from llm_datadist.testing._backend_target import digests

if TYPE_CHECKING:
    from llm_datadist.testing._backend_pair import BackendPair

ALL_BYTES = TENSOR_BYTES * NUM_TENSORS
PIECE_LISTS = {
    "one byte": [(0, 0, 1)],
    "odd bytes at odd places": [(1, 3, 4097), (10_001, 70_003, 333), (20_011, 5, 1)],
    "whole tensors": [(i * TENSOR_BYTES, i * TENSOR_BYTES, TENSOR_BYTES) for i in range(2)],
    "blocks in another order": [
        (((i * 37) % 1024) * 4096, ((i * 61) % 1024) * 4096, 4096) for i in range(1024)
    ],
    "more pieces than one system call takes": [(i * 128, i * 256, 100) for i in range(5000)],
    "across both tensors": [(TENSOR_BYTES - 8, TENSOR_BYTES - 16, 8), (TENSOR_BYTES, 0, 8)],
}
Pieces = list[tuple[int, int, int]]


def check_reads(pair: BackendPair) -> None:
    """READ moves length[i] bytes from remote[i] to local[i], and nothing else."""
    pair.ask("fill", 1)
    remote = pattern(1)
    for name, pieces in PIECE_LISTS.items():
        pair.local.arena.fill(2)
        expected = pattern(2)
        for local, source, length in pieces:
            expected[local : local + length] = remote[source : source + length]
        outcome = pair.run(pair.transfer(pieces))
        assert outcome.code == Code.OK, f"read of {name}: {outcome}"
        assert outcome.moved_bytes == sum(length for *_, length in pieces), name
        assert np.array_equal(pair.local.arena.contents(), expected), f"wrong bytes: {name}"
        assert not pair.local.arena.gaps().any(), f"bytes outside the tensors: {name}"


def check_writes(pair: BackendPair) -> None:
    """WRITE moves length[i] bytes from local[i] to remote[i]; OK means applied, not sent."""
    pair.local.arena.fill(3)
    local_bytes = pattern(3)
    for name, pieces in PIECE_LISTS.items():
        pair.ask("fill", 4)
        expected = pattern(4)
        for source, target, length in pieces:
            expected[target : target + length] = local_bytes[source : source + length]
        outcome = pair.run(pair.transfer(pieces, write=True))
        assert outcome.code == Code.OK, f"write of {name}: {outcome}"
        assert outcome.moved_bytes == sum(length for *_, length in pieces), name
        assert pair.ask("digest") == digests(expected), f"wrong bytes at the target: {name}"


def check_handles(pair: BackendPair) -> None:
    """`poll` returns the outcome of `wait` once there is one, and keeps returning it."""
    handle = pair.local.channel.post(pair.transfer([(0, 0, TENSOR_BYTES)]))
    while (polled := handle.poll()) is None:
        pass
    assert polled.code == Code.OK, polled
    assert handle.wait() == polled
    assert handle.poll() == polled
    handle.release()


def check_threads(pair: BackendPair) -> None:
    """Transfers of several threads at once do not disturb each other."""
    pair.ask("fill", 5)
    pair.local.arena.fill(6)
    num_threads, rounds, size = 6, 8, ALL_BYTES // 12
    outcomes: list[int] = []

    def move(number: int) -> None:
        # Even threads read the first half, odd ones write the second.
        begin = (number // 2) * size + (number % 2) * (ALL_BYTES // 2)
        pieces = [(begin + i * 4096, begin + i * 4096, 4096) for i in range(size // 4096)]
        for _ in range(rounds):
            transfer = pair.transfer(pieces, write=bool(number % 2))
            outcomes.append(pair.run(transfer).code)

    threads = [threading.Thread(target=move, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Code.OK] * (num_threads * rounds), outcomes
    local, remote, moved = pattern(6), pattern(5), (size // 4096) * 4096
    for number in range(num_threads):
        begin = (number // 2) * size + (number % 2) * (ALL_BYTES // 2)
        part = slice(begin, begin + moved)
        if number % 2:
            remote[part] = local[part]
        else:
            local[part] = remote[part]
    assert np.array_equal(pair.local.arena.contents(), local), "reads of several threads"
    assert pair.ask("digest") == digests(remote), "writes of several threads"


def check_descriptions(pair: BackendPair) -> None:
    """`describe` of a channel returns named facts."""
    facts = pair.local.channel.describe()
    assert facts, "describe() says nothing"
    assert all(isinstance(name, str) for name in facts)
    assert isinstance(pair.local.backend.describe(LINK_ID + 1), bytes)
