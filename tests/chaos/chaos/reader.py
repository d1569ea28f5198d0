"""An actor that pulls from its peers and looks at every byte."""

import os
import time

import numpy as np

from chaos.caches import KINDS, OFFER, PLACES, SOURCES, cluster_id
from chaos.judge import Links, check_source, check_status, situation
from chaos.memory import PAGE, Region, protect
from chaos.work import CALL_S
from llm_datadist import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, MemInfo, Memtype

LAYERS = 2  # of two tensors each
_QUIET_S = 0.05
_OWN_FAULT = "LLM_DEVICE_MEM_ERROR"
_DAMAGES = 0.03  # of all pulls


class Target:
    """Where the pulls of one kind go: memory of this actor's own."""

    def __init__(self, work, kind):
        self.kind = kind
        self.region = Region(*kind.shape)
        manager = work.manager
        register = manager.register_blocks_cache if kind.blocks else manager.register_cache
        self.cache = register(kind.desc, self.region.addrs)
        self.known = self.region.data.copy()

    @property
    def data(self):
        return self.region.data


class Pull:
    """One pull: arguments, the words that it brings, and where they go."""

    def __init__(self, chance, target, peer, cache_id):
        kind = target.kind
        layers = slice(None), slice(None)
        self.ranges = {}
        if kind is not OFFER and chance.random() < 0.4:
            src, dst = chance.randrange(LAYERS), chance.randrange(LAYERS)
            layers = slice(2 * src, 2 * src + 2), slice(2 * dst, 2 * dst + 2)
            self.ranges = {
                "src_layer_range": range(src, src + 1),
                "dst_layer_range": range(dst, dst + 1),
            }
        if kind.blocks:
            count = chance.choice([1, 2, kind.units // 2, kind.units])
            src, dst = (chance.sample(range(kind.units), count) for _ in range(2))
            self.key = BlocksCacheKey(cluster_id(peer), kind.name)
            self.arguments = self.key, target.cache, src, dst
            words = kind.words
        else:
            src, dst = [chance.randrange(kind.units)], [chance.randrange(kind.units)]
            words = chance.choice([kind.words, kind.words, chance.randrange(1, kind.words)])
            self.key = CacheKeyByIdAndIndex(cluster_id(peer), cache_id, src[0])
            self.arguments = self.key, target.cache, dst[0], words * 8
        self.places = PLACES[kind.name][layers[0]][:, src, :words]
        self.where = np.ix_(range(4)[layers[1]], dst, range(words))


class Reader:
    """Every kind of source, from every peer."""

    def __init__(self, work, name):
        self.work = work
        self.name = name
        self._chance = work.chance(name)
        self._links = Links()
        self._targets = {kind.name: Target(work, kind) for kind in KINDS if not kind.inbox}

    def run(self):
        while not self.work.stopped:
            peer = self._chance.choice(self.work.peers)
            kind = self._chance.choices([*SOURCES, OFFER], [6, 4, 3, 4, self.work.takes])[0]
            target = self._targets[kind.name]
            worked = self._take(target, peer) if kind is OFFER else self._pull(target, peer)
            if not worked:
                self._check_quiet(target, peer)
                self.work.pause(self._chance.uniform(0, 0.02))

    def _pull(self, target, peer):
        kind, ledger, manager = target.kind, self.work.ledger, self.work.manager
        before = situation(ledger, self.work.slot, peer, kind.name)
        pull = Pull(self._chance, target, peer, int(ledger.cache[peer, kind.name]))
        function = manager.pull_blocks if kind.blocks else manager.pull_cache
        damaged = self._damage(target, pull) if self._chance.random() < _DAMAGES else None
        began_ns = time.monotonic_ns()
        answer = self.work.call(
            self.name,
            function.__name__,
            CALL_S,
            lambda: function(*pull.arguments, **pull.ranges),
            peer=peer,
            cache=kind.name,
        )
        after = situation(ledger, self.work.slot, peer, kind.name)
        if damaged is not None:
            self._repair(damaged, answer)
        if answer.ok:
            data = target.data[pull.where]
            wrong = check_source(data, pull.places, peer, kind.name, before, after)
            if ledger.is_apart(self.work.slot, peer, began_ns):
                wrong = wrong or "pulled over a link that both ends had ended"
            if damaged is not None:
                wrong = wrong or "pulled into memory that could not be written"
            self._judge_success(target, pull.where, wrong, peer, before, after)
        elif damaged is None or answer.status != _OWN_FAULT:
            wrong = check_status(answer.status, before, after, self._links, peer)
            self._judge_failure(answer, wrong, peer, before, after, kind)
        return answer.ok

    def _damage(self, target, pull):
        """Take a page of what a pull is to write away; its address."""
        tensor, unit, _ = (int(axis.flat[0]) for axis in pull.where)
        offset = (tensor * target.kind.units + unit) * target.kind.unit_bytes
        address = target.region.address + offset // PAGE * PAGE
        protect(address, PAGE, accessible=False)
        return address

    def _repair(self, address, answer):
        """Restore the page, and register it again, with all that was named."""
        protect(address, PAGE, accessible=True)
        own = cluster_id(self.work.slot)  # a pull may meet the peer's damage as well
        ranges = [(fault.addr, fault.size) for fault in answer.faults if fault.cluster_id == own]
        if answer.status == _OWN_FAULT and not any(
            begin <= address < begin + size for begin, size in ranges
        ):
            self.work.journal.violation("fault elsewhere", at=hex(address), text=answer.text)
        infos = [
            MemInfo(Memtype.MEM_TYPE_DEVICE, begin, size)
            for begin, size in [*ranges, (address, PAGE)]
        ]
        remap = self.work.manager.remap_registered_memory
        answer = self.work.call(self.name, "remap of a target", CALL_S, remap, infos)
        if not answer.ok:
            self.work.journal.violation("refused", call="remap of a target", text=answer.text)

    def _take(self, target, peer):
        """Pull a CacheKey, which only one of all pullers can."""
        ledger, manager = self.work.ledger, self.work.manager
        number = int(ledger.offered[peer]) - self._chance.choice([0, 0, 0, 1, 2])
        removed = int(ledger.removed[peer])
        if number <= 0:
            return True
        key = CacheKey(cluster_id(peer), number)
        before = situation(ledger, self.work.slot, peer, OFFER.name)
        answer = self.work.call(
            self.name, "take", CALL_S, manager.pull_cache, key, target.cache, peer=peer, key=number
        )
        after = situation(ledger, self.work.slot, peer, OFFER.name)
        if not answer.ok:
            # A key may always be gone: another puller was first.
            if answer.status != "LLM_KV_CACHE_NOT_EXIST":
                wrong = check_status(answer.status, before, after, self._links, peer)
                self._judge_failure(answer, wrong, peer, before, after, OFFER)
            return False
        begun = before._replace(begun=number, over=number - 1)
        where = np.ix_(range(4), [0], range(OFFER.words))
        wrong = check_source(target.data, PLACES[OFFER.name], peer, OFFER.name, begun, begun)
        if removed >= number or before.over >= number:
            wrong = wrong or f"key {number} had been removed before"
        try:
            claim = self.work.directory / f"taken-{peer}-{number}"
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            wrong = wrong or f"key {number} was pulled twice"
        self._judge_success(target, where, wrong, peer, before, after)
        return True

    def _judge_success(self, target, where, wrong, peer, before, after):
        self._links.worked(peer, before, after)
        self.work.journal.count("pulled bytes", target.data[where].nbytes)
        if wrong:
            self._violation("wrong bytes", wrong, peer, before, after, cache=target.kind.name)
        target.known[where] = target.data[where]
        if self._chance.random() < 0.25:
            self._check_known(target, peer, "success")

    def _judge_failure(self, answer, wrong, peer, before, after, kind):
        if answer.status == "LLM_TIMEOUT" and self._links.broke_by_itself(peer, before, after):
            self.work.journal.count("timeouts without a reason")
        if answer.status in ("LLM_LINK_FAILED", "LLM_NOT_YET_LINK"):
            if not wrong and self._links.broke_by_itself(peer, before, after):
                wrong = "the link ended though nothing happened to it"
            self._links.broke(peer)
        if wrong:
            self._violation(
                "wrong status",
                wrong,
                peer,
                before,
                after,
                cache=kind.name,
                status=answer.status,
                text=answer.text,
            )

    def _check_quiet(self, target, peer):
        """After a failure: what has landed by now stays, and nothing follows."""
        target.known[:] = target.data
        self.work.pause(_QUIET_S)
        self._check_known(target, peer, "failure")

    def _check_known(self, target, peer, after_what):
        changed = target.data != target.known
        if changed.any():
            self.work.journal.violation(
                f"bytes after a {after_what}",
                actor=self.name,
                peer=peer,
                cache=target.kind.name,
                words=int(changed.sum()),
            )
            target.known[:] = target.data

    def _violation(self, kind, wrong, peer, before, after, **details):
        self.work.journal.violation(
            kind, actor=self.name, peer=peer, wrong=wrong, was=before, became=after, **details
        )
