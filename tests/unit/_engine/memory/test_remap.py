"""remap_registered_memory over a registry without native code: arguments, order, peers."""

from types import SimpleNamespace

import msgspec
import pytest

from llm_datadist import CacheDesc, DataType, LLMException, LLMStatusCode, MemInfo, Memtype
from llm_datadist._engine.instance import Lifetime
from llm_datadist._engine.link.messages import Remapped
from llm_datadist._engine.memory.remap import Remap
from llm_datadist._registry import CacheRegistry
from llm_datadist.testing.in_memory_node import InMemoryNode

DEVICE = Memtype.MEM_TYPE_DEVICE
START, SIZE, TENSORS = 0x10000, 1024, 2
END = START + TENSORS * SIZE
LINK = SimpleNamespace(cluster_id=2)


class Owner:
    """An instance whose remaps are written down step by step."""

    def __init__(self):
        self.config = SimpleNamespace(sync_timeout_ms=1000)
        self.life = Lifetime()
        self.steps = []
        self.registry = CacheRegistry(InMemoryNode())
        addrs = [START + SIZE * tensor for tensor in range(TENSORS)]
        self.cache = self.registry.register_cache(
            CacheDesc(TENSORS, [1, SIZE], DataType.DT_INT8), addrs
        )
        self.backends = [self]
        self.links = SimpleNamespace(links=lambda: [LINK], request_all=self.request_all)
        self.remap = Remap(self, self)

    def ref(self):
        return self.registry.get(self.cache.cache_id).ref

    def remapped(self, address, size):
        self.steps.append(("backend", self.ref(), address, size))

    def clear(self, address, size):
        self.steps.append(("clear", self.ref(), address, size))

    def send_to_peers(self):
        self.steps.append(("marks", self.ref()))

    def request_all(self, links, body, deadline_ns, on_failure):
        self.steps.append(("peers", self.ref(), msgspec.msgpack.decode(body, type=Remapped).ranges))


def test_peers_drop_ranges_after_the_guards_are_new():
    owner = Owner()
    before = owner.ref()
    owner.remap.run((MemInfo(DEVICE, START, 8), MemInfo(DEVICE, START + SIZE, 8)))
    after = owner.ref()
    assert after != before
    ranges = ((START, 8), (START + SIZE, 8))
    assert owner.steps == [
        *(("backend", before, *each) for each in ranges),
        *(("clear", after, *each) for each in ranges),
        ("marks", after),
        ("peers", after, ranges),
    ]
    assert owner.remap.num_remaps == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (MemInfo(Memtype.MEM_TYPE_HOST, START, SIZE), "MEM_TYPE_HOST"),
        (MemInfo(DEVICE, 0, SIZE), "addr 0"),
        (MemInfo(DEVICE, START, 0), "size 0"),
        (MemInfo(DEVICE, START, -1), "size -1"),
        (MemInfo(DEVICE, START - 1, 8), "8 bytes"),
        (MemInfo(DEVICE, END - 8, 9), "9 bytes"),
        (MemInfo(DEVICE, END, 1), "1 bytes"),
        (MemInfo(DEVICE, START, 2**70), f"{2**70} bytes"),
        (MemInfo(DEVICE, 2**63 - 1, 2**63), "registered"),
    ],
)
def test_a_wrong_entry_is_named_and_nothing_changes(wrong, words):
    """Item 56: kind, address, size, memory that is not registered, or not wholly."""
    owner, good = Owner(), MemInfo(DEVICE, START, SIZE)
    before = owner.ref()
    for infos, place in (((wrong,), 0), ((good, good, wrong), 2)):
        with pytest.raises(LLMException, match=rf"mem_infos\[{place}\].*{words}") as raised:
            owner.remap.run(infos)
        assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    with pytest.raises(LLMException, match="empty"):
        owner.remap.run(())
    assert (owner.ref(), owner.steps, owner.remap.num_remaps) == (before, [], 0)


def test_the_other_end_forgets_mappings_and_marks():
    owner, forgotten = Owner(), []
    channel = SimpleNamespace(forget=lambda *each: forgotten.append(("channel", *each)))
    marks = SimpleNamespace(forget=lambda *each: forgotten.append(("marks", *each)))
    link = SimpleNamespace(data=SimpleNamespace(channels=lambda: [channel], marks=marks))
    assert owner.remap.serve(link, Remapped(((1, 2), (3, 4)))) == b""
    assert forgotten == [(who, *each) for each in ((1, 2), (3, 4)) for who in ("channel", "marks")]
