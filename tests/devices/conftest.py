"""Tests of a GPU's memory. Where there is no GPU they are skipped; `test_stand_in.py` runs them
in a process whose driver is one that stands in for it.
"""

import pytest

from llm_datadist._backends.nixl.agent import Agent
from support.fake_cuda import FakeCuda
from support.gpu import STAND_IN, Gpu, load
from support.instances import Side, finalize, link, linked_sides
from support.owner_process import TIMEOUT_MS, OwnerProcess


@pytest.fixture(scope="session")
def driver():
    found = load()
    if found is None:
        pytest.skip("no GPU")
    return found


@pytest.fixture
def engine_accepts(monkeypatch):
    """Let the engine take a GPU's memory that stands in for one: to it this is host memory."""
    if STAND_IN:
        make_agent = Agent.__init__

        def init(self, bindings, *arguments):
            make_agent(self, bindings, *arguments)
            self._kinds["VRAM"] = bindings.module.DRAM_SEG

        monkeypatch.setattr(Agent, "__init__", init)


@pytest.fixture
def gpu(driver, engine_accepts):
    one = Gpu(driver)
    yield one
    one.close()


@pytest.fixture
def stand_in(driver):
    if not STAND_IN:
        pytest.skip("only the driver that stands in can do that")
    fake = FakeCuda(STAND_IN)
    yield fake
    fake.reset()


@pytest.fixture
def make(gpu):  # the memory goes after the instances
    """Make linked sides; they end with the test."""
    made = []

    def make_sides(backend="nixl", count=2, **options):
        made.extend(linked_sides(backend, count, **options))
        return made

    yield make_sides
    finalize(*made)


@pytest.fixture(scope="module")
def process(driver):
    one = OwnerProcess()
    yield one
    one.close()


@pytest.fixture
def owner(process):
    yield process
    process.ask("clean")


@pytest.fixture
def user(gpu, owner):
    side = Side(2, "host", device="cuda", sync_kv_timeout=TIMEOUT_MS)
    link(side.instance, owner.address)
    yield side
    finalize(side)
