"""Registration of memory with backends, and its withdrawal from peers that read by themselves."""

from types import SimpleNamespace

import pytest

from llm_datadist import LLMException, LLMStatusCode, Placement
from llm_datadist._backends.base import Unavailable
from llm_datadist._engine.instance import Lifetime
from llm_datadist._engine.memory import registration
from llm_datadist._engine.memory.registration import MemoryRegistration
from llm_datadist._errors import fail
from llm_datadist._plan import Layout

S = LLMStatusCode
LAYOUT = Layout.of([0x10000, 0x20000], 1024, 4)


class Backend:
    """A data path whose calls are written down."""

    def __init__(self, name, calls, *, withdraws=False, refuses=False):
        self.name = name
        self.calls = calls
        self.refuses = refuses
        self.capabilities = SimpleNamespace(withdraws=withdraws, placements=("host",))

    def register(self, region):
        if self.refuses:
            raise Unavailable("no memory of that kind")
        self.calls.append(("register", self.name))

    def withdraw(self, region):
        self.calls.append(("withdraw", self.name))

    def deregister(self, region):
        self.calls.append(("deregister", self.name))

    def fence(self, reason):
        self.calls.append(("fence", reason))


class World:
    def __init__(self, *backends, silent=(), broken=False):
        self.calls = []
        self.silent, self.broken = silent, broken
        self.life = Lifetime()
        self.config = config = SimpleNamespace(
            sync_timeout_ms=1000, device_ids=(0,), device="cpu", huge_pages="off"
        )
        made = [Backend(name, self.calls, **options) for name, options in backends]
        self.all = [
            SimpleNamespace(
                cluster_id=cluster_id,
                data=SimpleNamespace(peer=SimpleNamespace(metadata={name: b""})),
            )
            for cluster_id, name in ((2, "nixl"), (3, "nixl"), (4, "tcp"))
        ]
        self.memory = MemoryRegistration(config, made, self, self.life)

    def links(self):
        return self.all

    def request_all(self, links, body, deadline_ns, on_failure):
        if self.broken:
            raise RuntimeError("the loop has ended")
        self.calls.append(("ask", [link.cluster_id for link in links]))
        for link in links:
            if link.cluster_id in self.silent:
                on_failure(link, fail(S.LLM_TIMEOUT, "request", "slow", "wait"))

    def drop(self, link, reason):
        self.calls.append(("drop", link.cluster_id))

    def end(self):
        self.memory.deregister(LAYOUT, Placement.DEVICE, None)
        return self.calls


NIXL, TCP = ("nixl", {"withdraws": True}), ("tcp", {})


def test_a_refusal_undoes_what_was_registered():
    world = World(TCP, ("odd", {"refuses": True}), NIXL)
    with pytest.raises(LLMException, match="no memory of that kind") as raised:
        world.memory.register("register_cache", LAYOUT, Placement.DEVICE, None)
    assert raised.value.status_code is S.LLM_FAILED
    assert world.calls == [("register", "tcp"), ("deregister", "tcp")]


@pytest.mark.parametrize("how", ["off", "advise", "collapse"])
def test_huge_pages_are_asked_for_as_the_option_says(monkeypatch, how):
    asked = []
    monkeypatch.setattr(
        registration, "ask_huge_pages", lambda ranges, how: asked.append((ranges, how)) or 0
    )
    world = World(TCP)
    world.config.huge_pages = how
    assert world.memory.adopt("register_cache", LAYOUT, Placement.DEVICE) is None
    ranges = [(0x10000, 1024), (0x20000, 1024)]
    assert asked == ([] if how == "off" else [(ranges, how)])


def test_peers_that_read_by_themselves_are_asked_to_stop():
    assert World(TCP, NIXL).end() == [
        ("deregister", "tcp"),
        ("withdraw", "nixl"),
        ("ask", [2, 3]),
        ("deregister", "nixl"),
    ]


@pytest.mark.expects_log("withdrawal of memory: cluster 3 loses its link")
def test_a_peer_that_does_not_answer_is_fenced_off():
    reason = "cluster 3 may still read memory that was withdrawn"
    assert World(NIXL, silent={3}).end()[2:4] == [("drop", 3), ("fence", reason)]


def test_without_an_answer_of_any_peer_the_backend_is_fenced():
    calls = World(NIXL, broken=True).end()
    assert [call for call, _ in calls] == ["withdraw", "fence", "deregister"]


def test_an_instance_that_is_closing_asks_no_peer():
    world = World(NIXL, silent={2, 3})
    world.life.closing = True
    assert world.end() == [("withdraw", "nixl"), ("deregister", "nixl")]
