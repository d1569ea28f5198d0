"""A replay whose pulls fail, or bring wrong bytes."""

import pytest

from llm_datadist.cli.bench import work
from llm_datadist.cli.bench.presets import preset
from llm_datadist.cli.bench.trace.replay import Replay, Shape
from llm_datadist.cli.bench.trace.requests import Request

SHAPE = Shape(preset("llama-3.1-8b"), 16, 4)
REQUESTS = [Request(number, 32, 1, [number, number + 1]) for number in range(6)]


class Copies:
    """A contender within one process: copies blocks from a buffer, `wrong` bytes too low."""

    def __init__(self, wrong=0, fails=False):
        self.local, self.remote = (work.buffer(SHAPE.case().total_bytes) for _ in range(2))
        self.wrong, self.fails = wrong, fails
        self.pulled = []

    def check_read(self, _case, seed):
        work.fill(self.remote, seed)

    def pull(self, src, dst):
        if self.fails:
            raise RuntimeError("the owner is gone")
        case = SHAPE.case()
        shape = (case.tensors, case.count, case.block_bytes)
        self.pulled += src
        self.local.reshape(shape)[:, dst] = self.remote.reshape(shape)[:, src] - self.wrong


def replayed(contender, parallel=2):
    replay = Replay(contender, SHAPE, parallel)
    replay.prepare()
    return replay.run(REQUESTS, 1000.0, lambda _done: None)


def test_each_request_pulls_what_it_misses_only():
    contender = Copies()
    served = replayed(contender, parallel=1)
    assert [one.blocks for one in served] == [2] * 6
    assert sum(one.blocks - one.hits for one in served) == len(contender.pulled) == 7
    assert all(one.due_s <= one.begun_s <= one.pulled_s <= one.done_s for one in served)


def test_wrong_bytes_in_the_end_are_found():
    with pytest.raises(RuntimeError, match="wrong bytes in the cache of the decode process"):
        replayed(Copies(wrong=1))


def test_a_pull_that_fails_ends_the_replay():
    with pytest.raises(RuntimeError, match="the owner is gone"):
        replayed(Copies(fails=True), parallel=1)
