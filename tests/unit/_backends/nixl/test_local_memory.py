"""Memory that peers may read: registered once, and published while a cache uses it."""

import numpy as np
import pytest

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.local_memory import LocalMemory
from llm_datadist._backends.node import Node
from llm_datadist._backends.transfer import Region
from llm_datadist._types import Placement


class Agent:
    closed = False

    def __init__(self):
        self.registered, self.refuses = [], False

    def register(self, rows, kind):
        if self.refuses:
            raise NixlError("no")
        self.registered.append(rows.tolist())

    def deregister(self, rows, kind):
        self.registered.remove(rows.tolist())

    def region_metadata(self, rows, kind):
        if rows.tolist() not in self.registered:
            raise NixlError("not registered")
        return b"metadata"


@pytest.fixture
def agent():
    return Agent()


@pytest.fixture
def memory(agent):
    node = Node(12)
    made = LocalMemory(node, agent, None)
    yield made
    made.close()
    node.close()
    node.release()


def region(kind="DRAM"):
    addresses = np.array([8192, 4096], np.uint64)
    return Region(addresses, np.full(2, 4096, np.uint64), Placement.HOST, 0, 0, kind)


def published(memory):
    return list(memory.log._live)


def test_two_caches_share_one_registration(memory, agent):
    for _ in range(2):
        memory.register(region())
    assert agent.registered == [[[4096, 8192, 0]]], "ranges that touch are one"
    memory.withdraw(region())
    memory.deregister(region())
    assert len(published(memory)) == 1
    memory.withdraw(region())
    assert published(memory) == []
    memory.deregister(region())
    assert agent.registered == []


def test_a_remap_publishes_under_a_new_id(memory, agent):
    memory.register(region())
    before = published(memory)
    memory.remapped(12288, 4096)
    assert published(memory) == before
    memory.remapped(12287, 4096)
    assert published(memory) > before
    assert len(agent.registered) == 1


@pytest.mark.expects_log("cannot register 1 ranges, they are moved over lanes")
def test_host_memory_that_the_engine_refuses_is_not_published(memory, agent):
    agent.refuses = True
    memory.register(region())
    assert published(memory) == []


def test_device_memory_that_the_engine_refuses_is_an_error(memory, agent):
    agent.refuses = True
    with pytest.raises(Unavailable, match="does not take the GPU's memory: no"):
        memory.register(region("VRAM"))
