"""Operations under faults, and the checks after them."""

import time

from support.rig import BLOCKS, EVERY, WORDS
from support.station import OK, digest, pattern

LANES = 2  # on which one side asks, at the start


class Operation:
    """One call of `rig.local`, and the expected bytes."""

    def __init__(self, name, rig):
        self.rig = rig
        rig.local.fill(1)
        rig.remote.fill(2)
        self.pulls = name in ("pull", "take", "lookup")
        self.blocks = [3] if name == "push one block" else EVERY
        self.arguments = {
            "pull": ("pull", 1, EVERY, EVERY),
            "push": ("push", 1, EVERY, EVERY),
            "push one block": ("push", 1, [3], [3]),
            "layerwise": ("layerwise", 1, rig.remote.tensor_addrs(), EVERY, EVERY),
            "take": ("take", 1, 77),
            "lookup": ("pull", 1, [], []),
        }[name]
        if name == "lookup":
            self.blocks = []
            rig.remote.announce()
        if name == "take":
            rig.remote.offer(77, 2)
            assert rig.local.call("check", 1).status == OK

    def run(self):
        return self.rig.local.call(*self.arguments)

    def is_right(self):
        """Return whether the expected bytes, and no others, have arrived."""
        target = self.rig.local if self.pulls else self.rig.remote
        old, new = (1, 2) if self.pulls else (2, 1)
        wanted = pattern(old, BLOCKS, WORDS)
        wanted[:, self.blocks] = pattern(new, BLOCKS, WORDS)[:, self.blocks]
        return digest(target.data) == digest(wanted)


def spoilt_run(rig, operation, fault):
    """Run an operation under a fault; return its answer. Nothing moves after it."""
    rig.proxy.spoil(fault)
    answer = operation.run()
    assert rig.proxy.hits, "the fault met nothing"
    if answer.status == OK:
        assert operation.is_right()
    assert rig.is_quiet(), "bytes landed after the call had ended"
    return answer


def recovered(rig, fds):
    """Check that the link works again by itself, and is as it was before."""
    rig.recover()
    assert rig.all_lanes_are_back(LANES)
    deadline = time.monotonic() + 2
    while rig.local.fds() > fds:
        assert time.monotonic() < deadline, "descriptors were left behind"
        time.sleep(0.01)
