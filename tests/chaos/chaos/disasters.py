"""What the driver does to processes and to the network between them, by the seed."""

import random
import time

import numpy as np

KINDS = {"kill": 3, "freeze": 4, "hold": 3, "reset": 2}


class Disasters:
    """A plan of moments, slots and kinds, and how each is carried out; one at a time per slot.

    Args:
        run: The driver.
        seed: Of the plan.
        every_s: Mean time between two.
    """

    def __init__(self, run, seed, every_s):
        self._run = run
        self._chance = random.Random(f"{seed} disasters")
        self._every_s = every_s
        self._next = time.monotonic() + self._gap() if every_s else float("inf")
        self._ends = {}  # slot -> (when, what to do then)
        self.counts = dict.fromkeys(KINDS, 0)

    def _gap(self):
        return self._chance.expovariate(1 / self._every_s)

    def step(self):
        """Begin and end what is due."""
        now = time.monotonic()
        for slot, (until, end) in list(self._ends.items()):
            if until <= now:
                again = end()
                if again is None:
                    del self._ends[slot]
                else:
                    self._ends[slot] = again
        if now < self._next:
            return
        self._next = now + self._gap()
        slot = self._chance.randrange(self._run.processes)
        kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
        seconds = 10 ** self._chance.uniform(-1.3, 0.3)
        if slot not in self._ends:
            self.counts[kind] += 1
            self._run.note(disaster=kind, slot=slot, seconds=round(seconds, 3))
            self._ends[slot] = getattr(self, f"_{kind}")(slot, now, seconds)

    def finish(self):
        """End everything, so that all processes can."""
        deadline = time.monotonic() + 30
        while self._ends and time.monotonic() < deadline:
            self._next = float("inf")
            self.step()
            time.sleep(0.05)

    def _begin(self, what, slot):
        what[slot] += np.uint64(1)

    def _kill(self, slot, now, seconds):
        run, ledger = self._run, self._run.ledger
        self._begin(ledger.trouble, slot)
        ledger.port[slot] = 0
        run.kill(slot)
        ledger.pid[slot] = 0
        # Nothing of the dead process counts any more, and its caches are not registered.
        for name in range(ledger.change.shape[1]):
            ledger.begin_change(slot, name)
        ledger.remapping[slot] += ledger.remapping[slot] & np.uint64(1)
        ledger.over[slot] = ledger.begun[slot]
        ledger.cache[slot] = ledger.addrs[slot] = 0  # they would name other things in its successor
        ledger.linked_at[slot] = time.monotonic_ns()
        ledger.linking[slot] += ledger.linking[slot] & np.uint64(1)

        def start():
            run.start(slot)
            return time.monotonic() + 0.05, wait_until_it_listens

        def wait_until_it_listens():
            if not run.is_ready(slot) and run.peers[slot].exit is None:
                return time.monotonic() + 0.05, wait_until_it_listens
            self._begin(ledger.trouble, slot)
            return None

        return now + seconds / 2, start

    def _freeze(self, slot, now, seconds):
        trouble = self._run.ledger.trouble
        self._begin(trouble, slot)
        self._run.peers[slot].freeze()

        def thaw():
            self._run.peers[slot].thaw()
            self._begin(trouble, slot)

        return now + seconds, thaw

    def _hold(self, slot, now, seconds):
        return self._cut(slot, now, seconds, "hold")

    def _reset(self, slot, now, seconds):
        return self._cut(slot, now, min(seconds, 0.3), "reset")

    def _cut(self, slot, now, seconds, action):
        cut = self._run.ledger.cut
        self._begin(cut, slot)
        self._run.spoil(slot, action)

        def heal():
            self._run.heal(slot)
            self._begin(cut, slot)

        return now + seconds, heal
