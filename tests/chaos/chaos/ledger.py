"""Numbers that all processes of a run share in a mapped file; each has one writer at a time.

They are what makes bytes decidable: an owner writes down what it is about to do before it does it,
and that something is over when it is; a transferring process reads them before and after the call.
"""

import mmap

import numpy as np

NAMES = 8
IN_FLIGHT = 2**63
TENSORS = 4
MOST_SLOTS = 8

FIELDS = {
    "stop": (),  # set by the driver: all actors end
    "pid": (MOST_SLOTS,),  # 0 while there is no process
    "port": (MOST_SLOTS,),  # where it listens, 0 while it does not
    "proxy": (MOST_SLOTS,),  # the port of the proxy in front of it
    "life": (MOST_SLOTS,),  # processes that this slot has had
    "trouble": (MOST_SLOTS,),  # odd while the driver does something to the process
    "cut": (MOST_SLOTS,),  # odd while its proxy cuts
    "gave_up": (MOST_SLOTS,),  # links that its remaps ended because a peer did not answer in time
    "linking": (MOST_SLOTS, MOST_SLOTS),  # [actor, peer]: odd while the actor links or unlinks
    # [actor, peer], CLOCK_MONOTONIC ns: the last link (the far future while one is made), and when
    # the last unlink that both ends took part in was begun and had returned.
    "linked_at": (MOST_SLOTS, MOST_SLOTS),
    "unlink_begun": (MOST_SLOTS, MOST_SLOTS),
    "unlink_over": (MOST_SLOTS, MOST_SLOTS),
    "begun": (MOST_SLOTS, NAMES),  # the youngest generation whose bytes may be there
    "over": (MOST_SLOTS, NAMES),  # this one and all before it are no longer registered
    "change": (MOST_SLOTS, NAMES),  # odd while the owner changes something, or there is no cache
    "cache": (MOST_SLOTS, NAMES),  # its id
    "addrs": (MOST_SLOTS, NAMES, TENSORS),
    "remapping": (MOST_SLOTS, NAMES),  # odd while pages are replaced: two generations may mix
    "offered": (MOST_SLOTS,),  # the youngest CacheKey that may be pulled
    "removed": (MOST_SLOTS,),  # this one and all before it were removed
    "version": (MOST_SLOTS,),  # the youngest version that the slot has pushed
}


class Ledger:
    """See the module. Every field is an array of uint64, or a 0-dimensional one."""

    def __init__(self, path):
        total = sum(int(np.prod(shape)) for shape in FIELDS.values()) * 8
        if not path.exists():
            path.write_bytes(bytes(total))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), total)
        words = np.frombuffer(self._memory, np.uint64)
        offset = 0
        for name, shape in FIELDS.items():
            size = int(np.prod(shape))
            setattr(self, name, words[offset : offset + size].reshape(shape))
            offset += size

    @property
    def stopped(self):
        return bool(self.stop)

    def begin_change(self, slot, name):
        """Say that something of a cache is changing; again is nothing."""
        if not int(self.change[slot, name]) & 1:
            self.change[slot, name] += np.uint64(1)

    def end_change(self, slot, name):
        """Say that a cache is registered, whole, and stays so until `begin_change`."""
        if int(self.change[slot, name]) & 1:
            self.change[slot, name] += np.uint64(1)

    def is_apart(self, local, remote, since_ns):
        """Whether one of the two had unlinked the other by then, and neither has linked again."""
        linked = max(int(self.linked_at[local, remote]), int(self.linked_at[remote, local]))
        for end in ((local, remote), (remote, local)):
            begun, over = int(self.unlink_begun[end]), int(self.unlink_over[end])
            if linked < begun < over < since_ns:
                return True
        return False

    def circumstances(self, local, remote):
        """All that may break a link of these two slots; even and unchanged = nothing did."""
        return (
            int(self.trouble[local]),
            int(self.trouble[remote]),
            int(self.cut[local]),
            int(self.cut[remote]),
            int(self.linking[local, remote]),
            int(self.linking[remote, local]),
            int(self.stop),
            2 * int(self.gave_up[local]),
            2 * int(self.gave_up[remote]),
        )


def is_quiet(circumstances):
    """Whether nothing is going on."""
    return not any(number & 1 for number in circumstances)
