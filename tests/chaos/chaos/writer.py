"""An actor that pushes to its peers and looks into their memory to see what has landed."""

import time
from typing import NamedTuple

from chaos.caches import INBOX, POOLED_INBOX, cluster_id, units_of
from chaos.judge import Links, check_status, is_stable, situation
from chaos.ledger import TENSORS
from chaos.memory import Region, peek
from chaos.words import PUSHED, places, tag
from chaos.work import CALL_S, OK, Answer
from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

UNITS, WORDS = 8, 4096
LAYERS = 2
_TASK_S = CALL_S * LAYERS + 0.1
_QUIET_S = 0.05
_LATER_S = 2.0
_OUTBOXES = 6
_REFUSED = {"LLM_NOT_YET_LINK", "LLM_PARAM_INVALID"}  # before anything was sent


class Ready(LayerSynchronizer):
    """Every layer is, a moment later."""

    def __init__(self, chance):
        self._chance = chance

    def synchronize_layer(self, layer_index, timeout_in_millis):
        time.sleep(self._chance.uniform(0, 0.003))
        return True


class Landing(NamedTuple):
    """What a push writes, and where that is in the peer's process."""

    peer: int
    pid: int
    addresses: list
    words: list  # one array per address

    def landed(self):
        """Count the words that are there; None when the process is gone."""
        count = 0
        for address, words in zip(self.addresses, self.words, strict=True):
            remote = peek(self.pid, address, words.nbytes)
            if remote is None:
                return None
            count += int((remote == words).sum())
        return count

    @property
    def size(self):
        return sum(len(words) for words in self.words)


class Outbox:
    """Memory that is pushed from, registered as blocks and as slots.

    After a push that failed it is left alone until it is seen that nothing of it arrives late: a
    target of the same host would fetch what is in it then.
    """

    def __init__(self, manager):
        self.region = Region(TENSORS, UNITS, WORDS)
        desc = CacheDesc(TENSORS, [UNITS, WORDS], DataType.DT_UINT64)
        self.blocks = manager.register_blocks_cache(desc, self.region.addrs)
        self.slots = manager.register_cache(desc, self.region.addrs)


class Writer:
    """Each version that it pushes is written once and never again."""

    def __init__(self, work, name="writer"):
        self.work = work
        self.name = name
        self._chance = work.chance(name)
        self._links = Links()
        self._places = places(TENSORS, UNITS, WORDS)
        self._free = [Outbox(work.manager) for _ in range(_OUTBOXES)]
        self._watched = []  # (until, landing, words there when the push had failed, its outbox)

    def run(self):
        while not self.work.stopped:
            peer = self._chance.choice(self.work.peers)
            if not self._free or not self._push(peer):
                self.work.pause(self._chance.uniform(0, 0.02))
            self._look_again(time.monotonic())
            self.work.pause(10 ** self._chance.uniform(-4, -2))
        self._look_again(float("inf"))

    def _push(self, peer):
        work, chance, ledger = self.work, self._chance, self.work.ledger
        kind = chance.choices([INBOX, POOLED_INBOX], [4, 1])[0]
        layers = chance.choice([range(LAYERS), range(1), range(1, LAYERS)])
        mine = units_of(kind, work.slot)
        dst = chance.sample(mine, chance.randint(1, len(mine)))
        src = chance.sample(range(UNITS), len(dst))
        version = int(ledger.version[work.slot]) + 1
        ledger.version[work.slot] = version
        marked = tag(work.slot, PUSHED, version) + self._places[:, src]
        outbox = self._free[0]
        outbox.region.data[:, src] = marked
        before = situation(ledger, work.slot, peer, kind.name)
        if not int(ledger.addrs[peer, kind.name, 0]):
            return False
        operation, function = self._operation(outbox, kind, peer, layers, src, dst)
        landing = self._landing(kind, peer, layers, marked, dst)
        answer = work.call(
            self.name,
            operation,
            _TASK_S if operation == "layerwise" else CALL_S,
            function,
            peer=peer,
            version=version,
        )
        if answer.ok and answer.value is not None:  # of a task
            answer = Answer(answer.value)
            work.journal.count(f"{operation} {answer.status}")
        after = situation(ledger, work.slot, peer, kind.name)
        if answer.status == OK:
            self._judge_success(landing, kind, before, after, operation)
        else:
            self._judge_failure(answer, landing, before, after, operation)
        return answer.status == OK

    def _operation(self, outbox, kind, peer, layers, src, dst):
        manager = self.work.manager
        if kind is POOLED_INBOX:
            cache_id = int(self.work.ledger.cache[peer, kind.name])
            key = CacheKeyByIdAndIndex(cluster_id(peer), cache_id, dst[0])
            return "push_cache", lambda: manager.push_cache(
                key, outbox.slots, src[0], layers, layers
            )
        key = BlocksCacheKey(cluster_id(peer), kind.name)
        if self._chance.random() < 0.6:
            return "push_blocks", lambda: manager.push_blocks(
                key, outbox.blocks, src, dst, layers, layers
            )
        if self.work.raw:
            addrs = [int(each) for each in self.work.ledger.addrs[peer, kind.name]]
            tensors = addrs[2 * layers.start : 2 * layers.stop]
            config = TransferConfig(cluster_id(peer), tensors, layers)
        else:
            config = TransferWithCacheKeyConfig(key, layers, layers)
        ready = Ready(self._chance)

        def transfer():
            task = manager.transfer_cache_async(outbox.blocks, ready, [config], src, dst)
            return task.synchronize().name

        return "layerwise", transfer

    def _landing(self, kind, peer, layers, marked, dst):
        ledger = self.work.ledger
        addresses, words = [], []
        for tensor in range(2 * layers.start, 2 * layers.stop):
            begin = int(ledger.addrs[peer, kind.name, tensor])
            addresses += [begin + unit * kind.unit_bytes for unit in dst]
            words += list(marked[tensor])
        return Landing(peer, int(ledger.pid[peer]), addresses, words)

    def _judge_success(self, landing, kind, before, after, operation):
        """A push that returned has been applied: every word is there now."""
        self._links.worked(landing.peer, before, after)
        landed = landing.landed()
        now = situation(self.work.ledger, self.work.slot, landing.peer, kind.name)
        if landed is None or not is_stable(before, now):
            self.work.journal.count("pushes that could not be checked")
            return
        self.work.journal.count("pushed bytes", 8 * landing.size)
        if landed != landing.size:
            self._violation("lost push", landing, before, now, operation, landed=landed)

    def _judge_failure(self, answer, landing, before, after, operation):
        landed = landing.landed()
        wrong = check_status(
            answer.status,
            before,
            after,
            self._links,
            landing.peer,
            raw=operation == "layerwise" and self.work.raw,
        )
        if answer.status == "LLM_TIMEOUT" and self._links.broke_by_itself(
            landing.peer, before, after
        ):
            self.work.journal.count("timeouts without a reason")
        self._links.broke(landing.peer)
        if wrong:
            self._violation(
                "wrong status",
                landing,
                before,
                after,
                operation,
                wrong=wrong,
                status=answer.status,
                text=answer.text,
            )
        if landed is None:
            return
        self.work.pause(_QUIET_S)
        self._check_quiet(landing, landed)
        if answer.status not in _REFUSED:
            outbox = self._free.pop(0)
            self._watched.append((time.monotonic() + _LATER_S, landing, landed, outbox))

    def _look_again(self, now):
        """See once more whether pushes that failed a while ago have landed since."""
        while self._watched and self._watched[0][0] <= now:
            _, landing, landed, outbox = self._watched.pop(0)
            self._check_quiet(landing, landed)
            self._free.append(outbox)

    def _check_quiet(self, landing, landed):
        now = landing.landed()
        if now is not None and now > landed:
            self.work.journal.violation(
                "late push",
                actor=self.name,
                peer=landing.peer,
                words_then=landed,
                words_now=now,
                of=landing.size,
            )

    def _violation(self, kind, landing, before, after, operation, **details):
        self.work.journal.violation(
            kind,
            actor=self.name,
            peer=landing.peer,
            call=operation,
            was=before,
            became=after,
            size=landing.size,
            **details,
        )
