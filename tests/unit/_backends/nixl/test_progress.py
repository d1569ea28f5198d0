"""What several threads that carry out one transfer tell each other."""

from __future__ import annotations

import numpy as np

from llm_datadist._backends.nixl.chunks import chunks
from llm_datadist._backends.nixl.progress import Work
from llm_datadist._backends.outcomes import Code, Outcome


def work_of(count):
    whole = np.arange(count, dtype=np.uint64) * np.uint64(8)
    return Work(None, chunks(whole, whole, np.full(count, 8, np.uint64), 8))


def test_each_chunk_is_given_out_once_and_counts():
    work = work_of(3)
    begins = []
    while (chunk := work.next()) is not None:
        begins.append(int(chunk.local[0]))
        work.count(Outcome(Code.OK, moved_bytes=8))
    assert begins == [0, 8, 16]
    assert work.result() == Outcome(Code.OK, moved_bytes=24)


def test_a_failure_ends_it_for_all():
    work = work_of(3)
    work.next()
    work.count(Outcome(Code.OK, moved_bytes=8))
    work.count(Outcome(Code.LOCAL_FAULT, 14, 1, 4))
    assert work.has_ended()
    assert work.next() is None
    assert work.result() == Outcome(Code.LOCAL_FAULT, 14, 1, 12)


def test_the_first_outcome_counts_and_none_is_hidden_by_a_detour():
    work = work_of(3)
    work.end("NIXL has failed")
    assert work.result() == "NIXL has failed"
    work.end(Outcome(Code.TIMEOUT))
    work.end(Outcome(Code.CLOSED))
    work.end("no landing slot is free")
    assert work.result() == Outcome(Code.TIMEOUT)


def test_what_one_thread_leaves_another_may_do():
    work = work_of(1)
    work.leave()
    work.next()
    work.count(Outcome(Code.OK, moved_bytes=8))
    assert work.result() == Outcome(Code.OK, moved_bytes=8)


def test_what_all_threads_leave_takes_a_detour():
    work = work_of(2)
    work.next()
    work.leave()
    assert work.result() == "no landing slot is free"
