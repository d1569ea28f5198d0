"""The caches of every process, by number, and what peers do with them."""

from typing import NamedTuple

from chaos.ledger import MOST_SLOTS, TENSORS
from chaos.words import places
from llm_datadist import CacheDesc, DataType


class Kind(NamedTuple):
    """What is the same in all processes about cache number `name`.

    Attributes:
        name: Its number; of a blocks cache also the model_id of its key.
        blocks: A blocks cache, named by its BlocksCacheKey; else slots, named by the cache's id.
        pool: Allocated from the pool; else registered memory.
        units, words: Blocks or slots, and words of 8 bytes of one of them in one tensor.
        inbox: Peers push into it; else they pull from it.
    """

    name: int
    blocks: bool
    pool: bool
    units: int
    words: int
    inbox: bool = False

    @property
    def shape(self):
        return TENSORS, self.units, self.words

    @property
    def desc(self):
        return CacheDesc(TENSORS, [self.units, self.words], DataType.DT_UINT64)

    @property
    def unit_bytes(self):
        return self.words * 8


UNITS_PER_PUSHER = 4
BIG, POOLED, SLOTS, SMALL, INBOX, POOLED_INBOX, OFFER = KINDS = (
    Kind(0, blocks=True, pool=False, units=16, words=4096),
    Kind(1, blocks=False, pool=True, units=2, words=32768),
    Kind(2, blocks=False, pool=False, units=4, words=8192),
    Kind(3, blocks=True, pool=False, units=8, words=512),
    Kind(4, blocks=True, pool=False, units=UNITS_PER_PUSHER * MOST_SLOTS, words=4096, inbox=True),
    Kind(5, blocks=False, pool=True, units=MOST_SLOTS, words=4096, inbox=True),
    Kind(6, blocks=False, pool=True, units=1, words=2048),  # one slot under a CacheKey
)
PLACES = {kind.name: places(*kind.shape) for kind in KINDS}
SOURCES = (BIG, POOLED, SLOTS, SMALL)
INBOXES = (INBOX, POOLED_INBOX)


def cluster_id(slot):
    return slot + 1


def units_of(kind, pusher):
    """The units of an inbox that only this slot pushes into."""
    if kind is POOLED_INBOX:
        return [pusher]
    first = pusher * UNITS_PER_PUSHER
    return list(range(first, first + UNITS_PER_PUSHER))
