"""Backend checks: deadlines, dead peers and bad pages end in time the transfers they concern."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._backends.outcomes import Code
from llm_datadist.testing._arena import NUM_TENSORS, TENSOR_BYTES, pattern
from llm_datadist.testing._backend_target import digests

if TYPE_CHECKING:
    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist.testing._backend_pair import BackendPair

EVERYTHING = [(i * TENSOR_BYTES, i * TENSOR_BYTES, TENSOR_BYTES) for i in range(NUM_TENSORS)]
BLOCK_BYTES = 65_536
BLOCKS = [(i * BLOCK_BYTES, i * BLOCK_BYTES, BLOCK_BYTES) for i in range(16)]
BAD_BLOCK = 5
BOTH = (False, True)
LATE_S = 0.1
ATTEMPTS = 3  # other load on the machine may delay some; one must keep the bound
SETTLE_S = 0.3  # time for forbidden bytes to land


def check_read_past_its_deadline(pair: BackendPair) -> None:
    """A read whose deadline has passed moves nothing."""
    _expect_nothing_past_deadline(pair, write=False)


def check_write_past_its_deadline(pair: BackendPair) -> None:
    """A write whose deadline has passed moves nothing."""
    _expect_nothing_past_deadline(pair, write=True)


def _expect_nothing_past_deadline(pair: BackendPair, *, write: bool) -> None:
    pair.ask("fill", 7)
    pair.local.arena.fill(8)
    outcome = pair.run(pair.transfer(EVERYTHING, write=write, timeout_s=-0.001))
    assert outcome.code == Code.TIMEOUT, outcome
    assert np.array_equal(pair.local.arena.contents(), pattern(8)), "bytes landed locally"
    assert pair.ask("digest") == digests(pattern(7)), "bytes landed at the target"


def check_frozen_target(pair: BackendPair) -> None:
    """With a frozen target, a transfer ends by its deadline and its bytes never land later."""
    pair.ask("fill", 7)
    pair.local.arena.fill(8)
    pair.peer.freeze()
    outcome, elapsed_s = _timed(pair, write=True, timeout_s=0.3)
    assert outcome.code == Code.TIMEOUT, outcome
    assert elapsed_s < 0.3 + LATE_S + 1, f"a write came back after {elapsed_s:.3f} s"
    late_s = []
    for _ in range(ATTEMPTS):
        outcome, elapsed_s = _timed(pair, write=False, timeout_s=0.2)
        # PEER_DEAD: the write has closed the lanes, and this check opens no new ones.
        assert outcome.code in {Code.OK, Code.TIMEOUT, Code.PEER_DEAD}, outcome
        late_s.append(elapsed_s - 0.2)
    assert min(late_s) < LATE_S, f"reads came back late by {late_s}"
    before = pair.local.arena.contents()
    pair.peer.thaw()
    time.sleep(SETTLE_S)
    assert np.array_equal(pair.local.arena.contents(), before), "bytes landed locally after the end"
    assert pair.ask("digest") == digests(pattern(7)), "bytes landed at the target after the end"


def check_killed_target(pair: BackendPair) -> None:
    """With a dead target, transfers end at once, well before their deadline."""
    pair.peer.kill()
    pair.peer.wait()
    for write in BOTH:
        outcome, elapsed_s = _timed(pair, write=write, timeout_s=10)
        assert outcome.code in {Code.PEER_DEAD, Code.GONE}, outcome
        assert elapsed_s < 1, f"noticed after {elapsed_s:.3f} s"


def check_busy_target(pair: BackendPair) -> None:
    """Transfers run while the target's interpreter is busy."""
    pair.peer.send(["compute", 2.0])
    time.sleep(0.1)
    for write in BOTH:
        outcome, elapsed_s = _timed(pair, write=write, timeout_s=5)
        assert outcome.code == Code.OK, outcome
        assert elapsed_s < 1, f"took {elapsed_s:.3f} s beside a busy interpreter"
    assert pair.peer.receive() is None


def check_remote_bad_page(pair: BackendPair) -> None:
    """A bad page of the target fails the transfers that touch it, and no others."""
    bad_offset = BAD_BLOCK * BLOCK_BYTES + 3 * 4096
    pair.ask("protect", bad_offset, False)
    _expect_contained(pair, Code.REMOTE_FAULT)
    pair.ask("protect", bad_offset, True)
    for write in BOTH:
        outcome = pair.run(pair.transfer(BLOCKS, write=write))
        assert outcome.code == Code.OK, outcome


def check_local_bad_page(pair: BackendPair) -> None:
    """A bad local page fails the transfers that touch it, and no others."""
    bad_offset = BAD_BLOCK * BLOCK_BYTES + 3 * 4096
    pair.local.arena.protect(bad_offset, accessible=False)
    _expect_contained(pair, Code.LOCAL_FAULT)
    pair.local.arena.protect(bad_offset, accessible=True)
    for write in BOTH:
        outcome = pair.run(pair.transfer(BLOCKS, write=write))
        assert outcome.code == Code.OK, outcome


def _expect_contained(pair: BackendPair, code: Code) -> None:
    others = [piece for number, piece in enumerate(BLOCKS) if number != BAD_BLOCK]
    for write in BOTH:
        direction = "write" if write else "read"
        outcome = pair.run(pair.transfer(BLOCKS, write=write))
        assert outcome.code == code, f"{direction}: {outcome}, expected {code.name}"
        assert outcome.descriptor == BAD_BLOCK, f"{direction}: {outcome} names another block"
        outcome = pair.run(pair.transfer(others, write=write))
        assert outcome.code == Code.OK, f"{direction} of the other blocks: {outcome}"


def _timed(pair: BackendPair, *, write: bool, timeout_s: float) -> tuple[Outcome, float]:
    transfer = pair.transfer(EVERYTHING, write=write, timeout_s=timeout_s)
    started = time.monotonic()
    outcome = pair.run(transfer)
    return outcome, time.monotonic() - started
