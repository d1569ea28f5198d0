"""Real instances, their links and their memory against a model: docs/design/state-machines.md.

Three instances in one process link, unlink, are cut off, die, and come back; register, unregister,
break, repair and remap memory; pull and push single blocks. The model says how each call ends,
which links there are, which are to be made again, which memory is marked, and every byte.

`LDD_LONG=1` looks longer, and each time at other sequences.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMException,
    MemInfo,
    Memtype,
)
from support.instances import PAGE, Pages, eventually, initialized
from support.setup import info_of

LONG = bool(os.environ.get("LDD_LONG"))
IDS = (1, 2, 3)
BLOCKS, WORDS = 3, PAGE // 8
DESC = CacheDesc(1, [BLOCKS, WORDS], DataType.DT_UINT64)
#: While a link to a peer that is there is made again.
COMES_BACK_S = 30.0

ONE = st.sampled_from(IDS)
PAIR = st.permutations(IDS).map(lambda ids: ids[:2])
BLOCK = st.integers(0, BLOCKS - 1)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900 if LONG else 240),
    pytest.mark.expects_log(
        "link to cluster . at .* lost", "link_clusters: clusters", "met a fault in local memory"
    ),
]


@dataclass
class Member:
    """One instance as the model has it, and the real one.

    Attributes:
        instance: None while it is down.
        relinks: Its option auto_relink.
        port: Where it listens, each time that it is up.
        asked: Peers that it has linked by a call, which it would make again.
        lost: Peers whose link was lost, as long as it is remembered.
        pending: Those of them that are being made again.
        cache: Its cache while it is registered.
        pages, words: The cache's memory, and the word that each of its blocks is full of.
        broken: Blocks whose memory cannot be accessed.
        marked: Blocks that the instance knows of as such, until it remaps them.
    """

    number: int
    backend: str
    relinks: bool
    pages: Pages = field(default_factory=lambda: Pages(1, BLOCKS))
    instance: object = None
    port: int = 0
    asked: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    pending: set[int] = field(default_factory=set)
    cache: object = None
    words: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    broken: set[int] = field(default_factory=set)
    marked: set[int] = field(default_factory=set)

    def start(self):
        self.instance = initialized(
            self.number,
            self.backend,
            listen_ip_info=f"127.0.0.1:{self.port}",
            auto_relink=self.relinks,
            lanes_per_link=1,
            sync_kv_timeout=20_000,
        )
        self.port = self.instance.listen_address[1]

    @property
    def table(self):
        return self.instance._engine.links

    @property
    def manager(self):
        return self.instance.cache_manager

    def is_linked(self, peer):
        return any(link.cluster_id == peer for link in self.table.links())

    def crash(self):
        """Die as a process does: connections break without a notice, nothing is kept."""
        table = self.table

        async def die():
            table._listeners.close_all()
            table._reconnector.close()
            for link in table.links():
                link.conversation.connection.abort()

        table._control.run(die(), "die")
        self.end()

    def end(self):
        self.instance.finalize()
        self.instance = self.cache = None
        self.asked, self.lost, self.pending, self.marked = set(), set(), set(), set()

    def cut(self, peer):
        """Break the connection of a link; wait until this end has noticed."""
        link = self.table.get(peer)
        self.table._control.post(link.conversation.connection.abort)
        assert link.lost.wait(10)

    def fill(self, block, word):
        self.pages.data[0, block] = word
        self.words[block] = word


def ended(call, *arguments):
    """Make a call; return the name of the status that it came to."""
    try:
        value = call(*arguments)
    except LLMException as error:
        return error.status_code.name
    return value[0].name if isinstance(value, tuple) else "LLM_SUCCESS"


class LinksMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.members = {}
        self.links = set()  # frozensets of two ids
        self.word = 0

    def teardown(self):
        for member in self.members.values():
            if member.instance is not None:
                member.end()
            for block in range(BLOCKS):
                member.pages.replace(0, block)
            member.pages.close()

    @initialize(backend=st.sampled_from(["host", "tcp"]), relinks=st.sampled_from(IDS))
    def begin(self, backend, relinks):
        """All make lost links again but one, which is the original's behavior."""
        for number in IDS:
            member = Member(number, backend, number != relinks)
            member.start()
            self.members[number] = member

    # ---- links ----

    def up(self, *numbers):
        return all(self.members[number].instance is not None for number in numbers)

    def linked(self, one, other):
        """A link is there; nothing is lost any more, and nothing pending."""
        self.links.add(frozenset((one, other)))
        for end, peer in ((one, other), (other, one)):
            self.members[end].lost.discard(peer)
            self.members[end].pending.discard(peer)

    def lose(self, end, peer):
        """The end of a link at `end` is lost."""
        member = self.members[end]
        member.lost.add(peer)
        if member.relinks and peer in member.asked:
            member.pending.add(peer)
        else:
            member.asked.discard(peer)

    def await_link(self, one, other):
        """Wait until a link that is made again is there at both ends."""
        for end, peer in ((one, other), (other, one)):
            member = self.members[end]
            eventually(lambda m=member, p=peer: m.is_linked(p), COMES_BACK_S)
        self.linked(one, other)

    @rule(pair=PAIR, named=st.booleans())
    def link(self, pair, named):
        one, other = pair
        if not self.up(one):
            return
        initiator, target = self.members[one], self.members[other]
        if not target.port:
            return
        info = info_of(("127.0.0.1", target.port), other if named else None)
        status = ended(initiator.instance.link_clusters, [info], 20_000)
        if not self.up(other):
            assert status == "LLM_LINK_FAILED"
            return
        assert status == "LLM_SUCCESS"
        self.linked(one, other)
        initiator.asked.add(other)
        eventually(lambda: target.is_linked(one))

    @rule(pair=PAIR, force=st.booleans())
    def unlink(self, pair, force):
        one, other = pair
        if not self.up(one):
            return
        initiator, target = self.members[one], self.members[other]
        status = ended(
            initiator.instance.unlink_clusters, [info_of(cluster_id=other)], 20_000, force
        )
        untold = other in initiator.lost and not force
        assert status == ("LLM_NOTIFY_PROMPT_UNLINK_FAILED" if untold else "LLM_SUCCESS")
        for member, peer in ((initiator, other), (target, one)):
            if member is initiator or frozenset(pair) in self.links:
                member.lost.discard(peer)
                member.pending.discard(peer)
                member.asked.discard(peer)
        if frozenset(pair) in self.links:
            self.links.remove(frozenset(pair))
            eventually(lambda: not target.is_linked(one))

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def cut(self, data):
        """The network breaks a connection. The link comes back if an end is to make it again."""
        one, other = data.draw(st.sampled_from(sorted(tuple(sorted(link)) for link in self.links)))
        if data.draw(st.booleans()):
            one, other = other, one
        generations = [self.members[n].table.get(p).generation for n, p in self._ends(one, other)]
        self.members[one].cut(other)
        self.links.remove(frozenset((one, other)))
        for end, peer in self._ends(one, other):
            self.lose(end, peer)
        if any(peer in self.members[end].pending for end, peer in self._ends(one, other)):
            for (end, peer), generation in zip(self._ends(one, other), generations, strict=True):
                member = self.members[end]
                eventually(
                    lambda m=member, p=peer, g=generation: any(
                        link.cluster_id == p and link.generation > g for link in m.table.links()
                    ),
                    COMES_BACK_S,
                )
            self.await_link(one, other)
        else:
            eventually(lambda: not self.members[other].is_linked(one))

    @staticmethod
    def _ends(one, other):
        return (one, other), (other, one)

    @rule(number=ONE, dies=st.booleans())
    def go(self, number, dies):
        """An instance dies, or leaves in good order."""
        if not self.up(number):
            return
        member = self.members[number]
        if dies:
            member.crash()
        else:
            member.end()
        for link in [link for link in self.links if number in link]:
            (peer,) = link - {number}
            other = self.members[peer]
            self.links.remove(link)
            eventually(lambda m=other: not m.is_linked(number))
            if dies:
                self.lose(peer, number)
            else:
                other.asked.discard(number)

    @precondition(lambda self: not self.up(*IDS))
    @rule(data=st.data())
    def come(self, data):
        """An instance starts where one of its id was; peers that miss it link it by themselves."""
        number = data.draw(st.sampled_from([n for n in IDS if not self.up(n)]))
        self.members[number].start()
        for other in self.members.values():
            if number in other.pending:
                self.await_link(other.number, number)

    # ---- memory ----

    @rule(number=ONE)
    def register(self, number):
        member = self.members[number]
        if not self.up(number) or member.cache is not None:
            return
        for block in set(range(BLOCKS)) - member.broken:
            self.word += 1
            member.fill(block, self.word)
        member.cache = member.manager.register_blocks_cache(
            DESC, [member.pages.address], BlocksCacheKey(number)
        )

    @rule(number=ONE)
    def unregister(self, number):
        member = self.members[number]
        if self.up(number) and member.cache is not None:
            member.manager.unregister_cache(member.cache.cache_id)
            member.cache, member.marked = None, set()

    @rule(number=ONE, block=BLOCK)
    def break_memory(self, number, block):
        member = self.members[number]
        if block not in member.broken:
            member.pages.protect(0, block)
            member.broken.add(block)

    @rule(number=ONE, block=BLOCK)
    def repair_memory(self, number, block):
        member = self.members[number]
        if block in member.broken:
            if block % 2:
                member.pages.replace(0, block)
                member.words[block] = 0
            else:
                member.pages.protect(0, block, mmap.PROT_READ | mmap.PROT_WRITE)
            member.broken.remove(block)

    @rule(number=ONE, block=BLOCK)
    def remap(self, number, block):
        member = self.members[number]
        if self.up(number) and member.cache is not None:
            info = MemInfo(Memtype.MEM_TYPE_DEVICE, member.pages.at(0, block), PAGE)
            member.manager.remap_registered_memory(info)
            member.marked.discard(block)

    # ---- transfers ----

    @rule(pair=PAIR, src=BLOCK, dst=BLOCK, operation=st.sampled_from(["pull", "push"]))
    def transfer(self, pair, src, dst, operation):
        one, other = pair
        initiator, target = self.members[one], self.members[other]
        if not self.up(one) or initiator.cache is None:
            return
        initiator_block, target_block = (dst, src) if operation == "pull" else (src, dst)
        call = getattr(initiator.manager, f"{operation}_blocks")
        status = ended(call, BlocksCacheKey(other), initiator.cache, [src], [dst])
        if frozenset(pair) not in self.links:
            assert status == "LLM_NOT_YET_LINK"
        elif target.cache is None:
            assert status == "LLM_KV_CACHE_NOT_EXIST"
        elif initiator_block in initiator.marked:
            assert status == "LLM_DEVICE_MEM_ERROR"
        elif initiator_block in initiator.broken or target_block in target.broken:
            local = status == "LLM_DEVICE_MEM_ERROR"
            assert local or status == "LLM_SUSPECT_REMOTE_ERROR"
            owner, block = (initiator, initiator_block) if local else (target, target_block)
            assert block in owner.broken
            owner.marked.add(block)
        else:
            assert status == "LLM_SUCCESS"
            if operation == "pull":
                initiator.words[initiator_block] = target.words[target_block]
            else:
                target.words[target_block] = initiator.words[initiator_block]

    # ---- what holds at any time ----

    @invariant()
    def there_are_the_links_of_the_model(self):
        for number, member in self.members.items():
            if member.instance is None:
                continue
            wanted = {next(iter(link - {number})) for link in self.links if number in link}
            assert {link.cluster_id for link in member.table.links()} == wanted
            assert {link.state.name for link in member.table.links()} <= {"LINKED"}
            pending = {facts["cluster_id"] for facts in member.instance.describe_relinks()}
            assert pending == member.pending
            for peer in member.lost:
                assert ended(member.instance.check_link_status, peer) == "LLM_NOT_YET_LINK"

    @invariant()
    def memory_is_as_in_the_model(self):
        for member in self.members.values():
            for block in set(range(BLOCKS)) - member.broken:
                assert (member.pages.data[0, block] == np.uint64(member.words[block])).all()
            if member.instance is not None:
                eventually(lambda m=member: self.marks_of(m) == m.marked)

    @staticmethod
    def marks_of(member):
        return {fault.block for fault in member.manager.faulted_ranges()}


TestLinks = LinksMachine.TestCase
TestLinks.settings = settings(
    max_examples=400 if LONG else 60,
    stateful_step_count=50 if LONG else 40,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
)
