"""The actor that registers, allocates, unregisters, remaps and damages caches of its process."""

import time

import numpy as np

from chaos.caches import BIG, INBOX, INBOXES, KINDS, OFFER, PLACES, SMALL, cluster_id, units_of
from chaos.memory import PAGE, Region, protect, replace_pages, words_at
from chaos.words import POISON, PUSHED, tag, told
from chaos.work import CALL_S
from llm_datadist import BlocksCacheKey, CacheKey, MemInfo, Memtype

_OFFERS_KEPT = 6
_MOST_HALF_WORDS = 64
_TOP = np.uint64(56)  # whose word it is
_WEIGHTS = {0: 5, 1: 4, 2: 3, 3: 4, 4: 4, 5: 3, 6: 4}


class Owner:
    """Before it changes anything it says so in the ledger, and again when the change is over."""

    def __init__(self, work, name="owner"):
        self.work = work
        self.name = name
        self._chance = work.chance(name)
        self._regions = {kind.name: Region(*kind.shape) for kind in KINDS if not kind.pool}
        self._open = {}  # name -> (cache, its memory)
        self._poisoned = set()

    def run(self):
        kinds = list(KINDS)
        weights = [_WEIGHTS[kind.name] for kind in kinds]
        while not self.work.stopped:
            self.step(self._chance.choices(kinds, weights)[0])
            self.work.pause(10 ** self._chance.uniform(-3.2, -1.3))
        for kind in KINDS:
            self.close(kind)

    def step(self, kind):
        if kind is OFFER:
            self.offer()
        elif kind.name not in self._open:
            self.open(kind)
        else:
            roll = self._chance.random()
            if roll < 0.2 and kind not in INBOXES:
                self.remap(kind)
            elif roll < 0.3 and kind in (BIG, SMALL, INBOX):
                self.damage(kind)
            elif roll < 0.8:
                self.close(kind)
                if self._chance.random() < 0.8:
                    self.work.pause(10 ** self._chance.uniform(-4, -2))
                    self.open(kind)

    def _call(self, operation, function, *args, **details):
        return self.work.call(self.name, operation, CALL_S, function, *args, **details)

    def _must(self, operation, function, *args, **details):
        answer = self._call(operation, function, *args, **details)
        if not answer.ok:
            self.work.journal.violation(
                "refused", call=operation, status=answer.status, text=answer.text, **details
            )
        return answer.value

    # ---- caches ----

    def open(self, kind):
        """Fill memory with a new generation, and register it."""
        ledger, slot, manager = self.work.ledger, self.work.slot, self.work.manager
        self._check_poison(kind)
        generation = int(ledger.begun[slot, kind.name]) + 1
        ledger.begun[slot, kind.name] = generation
        content = tag(slot, kind.name, generation) + PLACES[kind.name]
        if kind.pool:
            cache = self._must("allocate_cache", manager.allocate_cache, kind.desc)
            if cache is None:
                return
            addrs = cache.tensor_addrs
            memory = [words_at(address, kind.shape[1:]) for address in addrs]
            for tensor, words in zip(memory, content, strict=True):
                tensor[:] = words
        else:
            region = self._regions[kind.name]
            region.data[:] = content
            self._poisoned.discard(kind.name)
            addrs, memory = region.addrs, list(region.data)
            if kind.blocks:
                key = BlocksCacheKey(cluster_id(slot), kind.name)
                arguments = manager.register_blocks_cache, kind.desc, addrs, key
            else:
                arguments = manager.register_cache, kind.desc, addrs
            cache = self._must("register_cache", *arguments)
        ledger.addrs[slot, kind.name] = addrs
        ledger.cache[slot, kind.name] = cache.cache_id
        self._open[kind.name] = cache, memory
        ledger.end_change(slot, kind.name)

    def close(self, kind):
        """Unregister, write something else into the memory at once, and see that it stays."""
        if kind.name not in self._open:
            return
        ledger, slot, manager = self.work.ledger, self.work.slot, self.work.manager
        cache, memory = self._open.pop(kind.name)
        self._check_content(kind, memory)
        ledger.begin_change(slot, kind.name)
        if kind.pool:
            self._must("deallocate_cache", manager.deallocate_cache, cache)
        else:
            self._must("unregister_cache", manager.unregister_cache, cache.cache_id)
        ledger.over[slot, kind.name] = ledger.begun[slot, kind.name]
        if not kind.pool:
            self._regions[kind.name].data[:] = POISON
            self._poisoned.add(kind.name)
            if self._chance.random() < 0.4:
                self.work.pause(self._chance.uniform(0, 0.05))
                self._check_poison(kind)

    def remap(self, kind):
        """Put other pages with the next generation under a registered cache, and say so."""
        ledger, slot = self.work.ledger, self.work.slot
        generation = int(ledger.begun[slot, kind.name]) + 1
        ledger.begin_change(slot, kind.name)
        ledger.remapping[slot, kind.name] += np.uint64(1)
        ledger.begun[slot, kind.name] = generation
        content = tag(slot, kind.name, generation) + PLACES[kind.name]
        addrs = self._open[kind.name][0].tensor_addrs
        for address, words in zip(addrs, content, strict=True):
            replace_pages(address, words)
        size = content[0].nbytes
        infos = [MemInfo(Memtype.MEM_TYPE_DEVICE, address, size) for address in addrs]
        self._must("remap", self.work.manager.remap_registered_memory, infos)
        ledger.over[slot, kind.name] = generation - 1
        ledger.remapping[slot, kind.name] += np.uint64(1)
        ledger.end_change(slot, kind.name)

    def damage(self, kind):
        """Take pages of a registered cache away for a while, give them back, and remap them."""
        ledger, slot = self.work.ledger, self.work.slot
        address = self._chance.choice(self._open[kind.name][0].tensor_addrs)
        address += self._chance.randrange(kind.units * kind.unit_bytes // PAGE) * PAGE
        ledger.begin_change(slot, kind.name)
        protect(address, PAGE, accessible=False)
        time.sleep(self._chance.uniform(0, 0.02))
        protect(address, PAGE, accessible=True)
        info = MemInfo(Memtype.MEM_TYPE_DEVICE, address, PAGE)
        self._must("remap after damage", self.work.manager.remap_registered_memory, info)
        ledger.end_change(slot, kind.name)

    def offer(self):
        """Offer a slot under a new CacheKey, which lives until it is pulled; withdraw old ones."""
        ledger, slot, manager = self.work.ledger, self.work.slot, self.work.manager
        number = int(ledger.begun[slot, OFFER.name]) + 1
        ledger.begun[slot, OFFER.name] = number
        key = CacheKey(cluster_id(slot), number)
        cache = self._must("allocate_cache", manager.allocate_cache, OFFER.desc, [key])
        if cache is None:
            return
        content = tag(slot, OFFER.name, number) + PLACES[OFFER.name]
        for address, words in zip(cache.tensor_addrs, content, strict=True):
            words_at(address, OFFER.shape[1:])[:] = words
        self._must("deallocate_cache", manager.deallocate_cache, cache)
        ledger.offered[slot] = number
        old = number - _OFFERS_KEPT
        if old > 0:
            key = CacheKey(cluster_id(slot), old)
            self._must("remove_cache_key", manager.remove_cache_key, key)
            ledger.removed[slot] = old

    # ---- checks ----

    def _check_poison(self, kind):
        """Memory that is not registered must have been written by this actor only."""
        if kind.name not in self._poisoned:
            return
        data = self._regions[kind.name].data
        if not (data == POISON).all():
            found = [told(word) for word in data[data != POISON].flat[:4]]
            self.work.journal.violation(
                "written after unregister", cache=kind.name, words=found, at_all=data.size
            )
            data[:] = POISON

    def _check_content(self, kind, memory):
        """What is registered holds what its owner wrote, or what its pushers did, and in place."""
        if self._chance.random() > 0.3:
            return
        slot = self.work.slot
        own = tag(slot, kind.name, int(self.work.ledger.begun[slot, kind.name]))
        for tensor, words in enumerate(memory):
            now = words.copy()
            foreign = now - PLACES[kind.name][tensor] != own
            if kind in INBOXES:
                foreign &= ~self._by_its_pusher(kind, now)
                if foreign.sum() <= _MOST_HALF_WORDS:
                    # The network cuts between any two bytes: a word may have begun to change.
                    foreign &= now >> _TOP != own >> _TOP
            if foreign.any():
                found = [told(word) for word in now[foreign].flat[:4]]
                self.work.journal.violation(
                    "foreign words", cache=kind.name, tensor=tensor, words=found, own=told(own)
                )

    @staticmethod
    def _by_its_pusher(kind, words):
        """Where words of an inbox are of the slot that pushes into that unit."""
        right = np.zeros(words.shape, bool)
        for pusher in range(len(words)):
            units = [unit for unit in units_of(kind, pusher) if unit < len(words)]
            if units:
                wanted = (pusher + 1) << 4 | PUSHED
                right[units] = words[units] >> _TOP == wanted
        return right
