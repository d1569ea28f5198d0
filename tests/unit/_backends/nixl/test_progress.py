"""What several threads that carry out one transfer tell each other."""

from __future__ import annotations

import numpy as np

from llm_datadist._backends.nixl.chunks import chunks
from llm_datadist._backends.nixl.progress import Progress
from llm_datadist._backends.outcomes import Code, Outcome


def progress_of(count):
    whole = np.arange(count, dtype=np.uint64) * np.uint64(8)
    return Progress(None, chunks(whole, whole, np.full(count, 8, np.uint64), 8))


def test_each_chunk_is_given_out_once_and_counts():
    progress = progress_of(3)
    begins = []
    while (chunk := progress.next_chunk()) is not None:
        begins.append(int(chunk.local[0]))
        progress.add(Outcome(Code.OK, moved_bytes=8))
    assert begins == [0, 8, 16]
    assert progress.result() == Outcome(Code.OK, moved_bytes=24)


def test_a_failure_ends_it_for_all():
    progress = progress_of(3)
    progress.next_chunk()
    progress.add(Outcome(Code.OK, moved_bytes=8))
    progress.add(Outcome(Code.LOCAL_FAULT, 14, 1, 4))
    assert progress.is_aborted
    assert progress.next_chunk() is None
    assert progress.result() == Outcome(Code.LOCAL_FAULT, 14, 1, 12)


def test_the_first_outcome_counts_and_none_is_hidden_by_a_detour():
    progress = progress_of(3)
    progress.abort("NIXL has failed")
    assert progress.result() == "NIXL has failed"
    progress.abort(Outcome(Code.TIMEOUT))
    progress.abort(Outcome(Code.CLOSED))
    progress.abort("no landing slot is free")
    assert progress.result() == Outcome(Code.TIMEOUT)


def test_what_one_thread_leaves_another_may_do():
    progress = progress_of(1)
    progress.no_slot()
    progress.next_chunk()
    progress.add(Outcome(Code.OK, moved_bytes=8))
    assert progress.result() == Outcome(Code.OK, moved_bytes=8)


def test_what_all_threads_leave_takes_a_detour():
    progress = progress_of(2)
    progress.next_chunk()
    progress.no_slot()
    assert progress.result() == "no landing slot is free"
