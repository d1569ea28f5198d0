"""A made-up link, directory and peer, over which attempts of transfers are tried."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.instance import Lifetime
from llm_datadist._engine.link.ended_notices import EndedNotices
from llm_datadist._engine.transfer.attempt import Attempts, Request
from llm_datadist._engine.transfer.counters import TransferCounters
from llm_datadist._errors import LLMStatusCode
from llm_datadist._plan import Layout, plan_blocks
from llm_datadist._registry import Resolved
from llm_datadist._types.refs import NO_REF

S = LLMStatusCode
OWN, PEER = 1, 2
TENSORS, BLOCKS, UNIT = 2, 4, 64
KEY = BlocksCacheKey(PEER)
KEY_REF = (9, 91)


def a_cache(cache_id, start, ref):
    addrs = [start + 0x10000 * tensor for tensor in range(TENSORS)]
    return SimpleNamespace(
        cache_id=cache_id,
        ref=ref,
        desc=CacheDesc(TENSORS, [BLOCKS, UNIT], DataType.DT_INT8),
        layout=Layout.of(addrs, BLOCKS * UNIT, BLOCKS),
        is_blocks=True,
        device=None,
        on_device=False,
        faulted=(),
    )


def a_range(cache, tensor, block):
    return int(cache.layout.starts[tensor]) + block * UNIT, UNIT


class Directory:
    """A peer's directory: `known` is what the reader has read, `published` what is new."""

    version = 40

    def __init__(self, *published, known=None):
        self.published = list(published)
        self.known = known
        self.refreshed = 0

    def refresh(self, operation, deadline_ns):
        self.refreshed += 1
        if self.published:
            self.known = self.published.pop(0)

    def resolve(self, operation, key, deadline_ns, *, fresh):
        if isinstance(self.known, Exception):
            raise self.known
        return self.known


class Link:
    """A link and its data plane. The memory of `bad` cannot be accessed; `outcomes` come first."""

    lost = SimpleNamespace(is_set=lambda: False, wait=lambda seconds: False)
    reason = ""
    address = ("192.0.2.1", 5)

    def __init__(self, directory, *outcomes, bad=(), published=False):
        self.data = self
        self.path, self.device_path = "of host memory", "of device memory"
        self.directory = directory
        self.outcomes = list(outcomes)
        self.bad = bad
        self.published = published
        self.checked = self.in_process = False
        self.marks = ()
        self.device_trouble = ""
        self.failures = self.mismatches = 0
        self.counted = []
        self.transfers = []
        self.consumed = []
        self.consume_outcome = Outcome(Code.OK)
        self.is_open = True
        self.takes_ended = False
        self.lanes = self

    def run(self, transfer):
        self.transfers.append(transfer)
        if self.outcomes:
            return self.outcomes.pop(0)
        moved = 0
        for index, (local, remote, size) in enumerate(
            zip(transfer.local, transfer.remote, transfer.length, strict=True)
        ):
            for code, begin in ((Code.LOCAL_FAULT, local), (Code.REMOTE_FAULT, remote)):
                if any(begin < addr + length and addr < begin + size for addr, length in self.bad):
                    return Outcome(code, 14, index, moved)
            moved += int(size)
        return Outcome(Code.OK, moved_bytes=moved)

    def consume(self, key_ref, deadline_ns):
        self.consumed.append(key_ref)
        return self.consume_outcome

    def required_version(self):
        return self.directory.version

    def peer_end_is_open(self):
        return self.is_open

    def count(self, num_bytes, write):
        self.counted.append((num_bytes, write))


class Marks:
    """Fault marks of the local instance, and what peers are notified of."""

    def __init__(self):
        self.marked = []
        self.of_entry = []
        self.reported = []
        self.refused_by = []

    def check_local(self, operation, cache, plan, peer, *, local):
        assert cache.faulted, "the cache has no marks"
        assert local
        raise LLMException("marked", status_code=S.LLM_DEVICE_MEM_ERROR)

    def check_peer(self, operation, link, remote, plan):
        if remote.ref in self.refused_by:
            raise LLMException("marked", status_code=S.LLM_SUSPECT_REMOTE_ERROR)

    def mark(self, cache, ref, faults):
        self.marked += faults
        self.of_entry += [ref] * len(faults)

    def report_to_owner(self, link, entry, faults):
        self.reported += [(entry, fault) for fault in faults]


LOCAL = a_cache(1, 0x100000, (3, 31))
REMOTE = a_cache(7, 0x900000, (5, 51))
REPLACED = a_cache(8, 0xA00000, (6, 61))
FOUND = Resolved(REMOTE, 0, NO_REF)


def a_plan(indices, remote):
    every = range(TENSORS)
    return plan_blocks(LOCAL.layout, indices, every, remote.layout, indices, every)


class World:
    def __init__(
        self, link, life=None, local=LOCAL, *, statuses=MappingProxyType({}), slow_ms=None
    ):
        self.link = link
        self.local = local
        self.marks = Marks()
        self.life = life or Lifetime()
        self.links = SimpleNamespace(get=lambda cluster_id, operation: link)
        self.cluster_id = OWN
        self.config = SimpleNamespace(
            sync_timeout_ms=1000, statuses=statuses, slow_transfer_ms=slow_ms
        )
        self.counters = TransferCounters()
        self.links.hooks, self.links.post = SimpleNamespace(), lambda call: call()
        notices = EndedNotices(self.links)
        self.attempts = Attempts(self, self.marks, None, self.counters, notices)

    def run(self, key=KEY, *, write=False, layers=None, blocks=range(BLOCKS), trace=None):
        indices = np.array(list(blocks), np.int64)

        def plan(found):
            return a_plan(indices, found.cache)

        self.attempts.run(Request("pull_blocks", key, self.local, plan, layers, trace, write))

    def push_raw(self):
        request = Request("transfer_cache_async", KEY, self.local, None, write=True)
        self.attempts.run(request, a_plan(np.arange(BLOCKS), REMOTE))

    def fails(self, status, *texts, **more):
        with pytest.raises(LLMException) as raised:
            self.run(**more)
        assert raised.value.status_code is status
        for text in texts:
            assert text in str(raised.value)
        assert self.link.failures == 1
        assert self.link.counted == []
        assert self.counted() == ("pull_blocks", "of host memory", 0, {status.name: 1})
        return raised.value

    def counted(self):
        """What the only entry of the counters has."""
        (entry,) = self.counters.stats()
        return entry.operation, entry.path, entry.num_bytes, entry.errors


WAYS = {
    "pull": World.run,
    "push": lambda world: world.run(write=True),
    "push to bare addresses": World.push_raw,
}
