"""Two instances with a proxy between them, and the checks after any fault."""

import time

from support.station import OK, digest, pattern

BLOCKS, WORDS = 16, 2048  # of each of 4 tensors: 1 MiB in all
EVERY = list(range(BLOCKS))
TIMEOUT_MS = 400
LATE_S = 0.1  # how long after its deadline a call may end
NOISE_S = 0.3  # what a busy machine adds
QUIET_S = 0.3  # how long nothing may move
HEAL_S = 3.0  # until when links must have healed


class Rig:
    """`local` has linked `remote` through `proxy`, and makes the calls."""

    def __init__(self, remote, local, proxy):
        self.remote = remote
        self.local = local
        self.proxy = proxy
        local.fill(1)
        remote.fill(2)

    def memory(self):
        return self.local.data.copy(), self.remote.data.copy()

    def is_quiet(self, seconds=QUIET_S):
        """Return whether nothing changes in either memory."""
        before = self.memory()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.02)
            if any((old != new).any() for old, new in zip(before, self.memory(), strict=True)):
                return False
        return True

    def transfer_works(self, seconds=HEAL_S):
        """Pull and push until both succeed, without linking again; check every byte."""
        deadline = time.monotonic() + seconds
        for operation, source, target in (
            ("pull", self.remote, self.local),
            ("push", self.local, self.remote),
        ):
            source.fill(7)
            target.fill(8)
            while (answer := self.local.call(operation, 1, EVERY, EVERY)).status != OK:
                assert time.monotonic() < deadline, answer
                time.sleep(0.02)
            assert digest(target.data) == digest(pattern(7, BLOCKS, WORDS))
        return True

    def recover(self):
        """End the fault, and wait until the link works without linking again."""
        self.proxy.heal()
        assert self.transfer_works()
        assert self.is_quiet(0.05)

    def all_lanes_are_back(self, count, seconds=HEAL_S):
        deadline = time.monotonic() + seconds
        while self.local.describe(1)["lanes"] < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def forget(caplog):
    """Drop log records: their exceptions keep objects alive that leak checks look for."""
    caplog.get_records("call").clear()
    caplog.clear()
