"""NIXL as instances use it: what is chosen and said, memory that comes and goes, a silent peer."""

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, LLMStatusCode
from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.host import HostBackend
from llm_datadist._backends.nixl.bindings import NUM_POSTING_THREADS
from llm_datadist.testing import PeerGroup
from support.instances import Side, failing, finalize, link, linked_sides
from support.nixl_backends import NEEDS_NIXL
from support.rig import forget
from support.setup import info_of

BIG = {"tensors": 2, "units": 64, "words": 2048}  # 2 MiB: more than what goes over lanes
EVERY = list(range(64))
ELSEWHERE = "the peer runs on another host"

pytestmark = NEEDS_NIXL


@pytest.fixture
def apart(monkeypatch):
    """No same-host path."""

    def connect(self, peer, lanes):
        raise Unavailable(ELSEWHERE)

    monkeypatch.setattr(HostBackend, "connect", connect)


@pytest.fixture
def rdma(monkeypatch):
    """Every host seems to have an RDMA device."""
    for module in ("_backends.select", "_backends.nixl.backend", "_engine.link.delegate"):
        monkeypatch.setattr(f"llm_datadist.{module}.has_rdma", lambda: True)


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr("llm_datadist._backends.nixl.bindings._PACKAGES", ())


@pytest.fixture
def make():
    """Make linked sides; they end with the test."""
    made = []

    def make_sides(backend="auto", count=2, **options):
        made.extend(linked_sides(backend, count, **options))
        return made

    yield make_sides
    finalize(*made)


def facts(side, peer=1):
    return side.instance.describe_link(peer)


def pulled(owner, user):
    """Pull a cache that is registered now; return whether the bytes are right."""
    source, target = owner.blocks(seed=3, key=0, **BIG), user.blocks(**BIG)
    user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, EVERY[::-1])
    return (target.data[:, EVERY[::-1]] == source.data).all()


def landing_files():
    """Return the memory files of landing slots that this process has open."""
    paths = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one of this loop
            paths.append(str(each.readlink()))
    return [path for path in paths if "llm_datadist-nixl" in path]


def test_what_is_forced_is_used_and_described(make):
    owner, user = make("nixl")
    assert pulled(owner, user)
    found = facts(user)
    assert found["backend"] == {"host": "nixl", "device": "nixl"}
    assert found["channel"]["engine"] == "UCX"
    assert found["channel"]["wheel"].startswith("nixl-cu")
    assert (found["channel"]["transfers"], found["channel"]["over_lanes"]) == (1, 0)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_large_transfers_are_posted_by_several_threads(make, monkeypatch, transport):
    """Where the engine copies while it posts, as within a host, once that has been seen."""
    monkeypatch.setenv("UCX_TLS", "shm,cma,self,tcp" if transport == "shm" else "tcp")
    owner, user = make("nixl")
    large = {"tensors": 2, "units": 64, "words": 96 << 10}  # 48 MiB: six chunks
    source, target = owner.blocks(seed=3, key=0, **large), user.blocks(seed=4, **large)
    order = np.random.default_rng(5).permutation(64)
    for _ in range(3):
        target.data[:] = 0
        user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, order.tolist())
        assert (target.data[:, order] == source.data).all()
    for _ in range(3):
        source.data[:] = 0
        user.manager.push_blocks(owner.blocks_key(), target.cache, order.tolist(), EVERY)
        assert (target.data[:, order] == source.data).all()
    found = facts(user)["channel"]
    assert (found["transfers"], found["over_lanes"]) == (6, 0)
    if transport == "shm":
        assert found["posting_threads"] == NUM_POSTING_THREADS


def test_memory_that_comes_and_goes_under_a_link(make):
    """Registered after the link: usable at once. Unregistered: gone at once. Again, elsewhere."""
    owner, user = make("nixl")
    for turn in range(1, 6):
        assert pulled(owner, user)
        assert facts(user)["channel"]["transfers"] == turn
        held, target = owner.held[-1], user.held[-1]
        owner.manager.unregister_cache(held.id)
        with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
            user.manager.pull_blocks(held.slot(), target.cache, (), [0])
    assert facts(user)["channel"]["over_lanes"] == 0


@pytest.mark.expects_log("now names")
def test_links_that_have_ended_leave_no_descriptors(make):
    """Their landing slots stay mapped, since the engine may still write there; no file does."""
    owner, user = make("nixl")
    files = []
    for _ in range(6):
        assert pulled(owner, user)
        user.instance.unlink_clusters([info_of(owner.address, 1)])
        files.append(len(landing_files()))
        link(user.instance, owner.address)
    assert files == [files[0]] * 6


def test_units_that_are_not_neighbors_go_by_index(make):
    """Prepared lists and addresses bring the same bytes."""
    owner, user = make("nixl")
    source, target = owner.blocks(seed=5, key=0, **BIG), user.blocks(**BIG)
    order = [int(at) for at in np.random.default_rng(1).permutation(64)]
    for src, dst in ((order, EVERY), (EVERY, order), (EVERY[:50], EVERY[14:])):
        target.data[:] = 0
        user.manager.pull_blocks(owner.blocks_key(), target.cache, src, dst)
        assert (target.data[:, dst] == source.data[:, src]).all()
    assert facts(user)["channel"]["transfers"] == 3


def test_what_peers_may_not_touch_is_not_registered(make):
    owner, user = make("nixl")
    (backend,) = owner.instance._engine.backends
    source, target = owner.blocks(seed=5, key=0, accessible=False, **BIG), user.blocks(**BIG)
    assert backend.memory._regions == {}
    with failing("LLM_PARAM_INVALID", "pull_blocks", peer=1):
        user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, EVERY)
    assert not target.data.any()
    owner.manager.unregister_cache(source.id)


def test_a_link_of_an_instance_with_itself(make):
    (side,) = make("nixl", 1)
    link(side.instance, side.address)
    assert pulled(side, side)
    assert facts(side)["channel"]["why_over_lanes"] == "the peer is this instance"


@pytest.mark.usefixtures("no_wheel")
def test_a_missing_wheel_is_a_sentence():
    with failing("LLM_PARAM_INVALID", "init", "pip install llm-datadist[nixl]"):
        Side(1, "nixl")


def test_without_rdma_the_lanes_are_chosen(make, apart):
    _, user = make()
    assert facts(user)["backend"]["host"] == "tcp"
    assert facts(user)["why"] == {"host": ELSEWHERE}


def test_with_rdma_nixl_is_chosen(make, apart, rdma):
    owner, user = make()
    assert pulled(owner, user)
    assert facts(user)["backend"]["host"] == "nixl"
    assert facts(user)["why"] == {"host": ELSEWHERE}


def test_on_one_host_the_same_host_path_is_chosen(make, rdma):
    _, user = make()
    assert facts(user)["backend"]["host"] == "host"


@pytest.mark.expects_log("slower than it could: both hosts have an RDMA device.*not installed")
def test_a_slow_path_is_never_silent(make, apart, rdma, no_wheel):
    _, user = make()
    assert facts(user)["backend"]["host"] == "tcp"
    assert "pip install" in facts(user)["why"]["nixl"]


@pytest.mark.expects_log("link", "connection")
def test_a_slow_path_may_be_refused(make, apart, rdma, no_wheel, caplog):
    (owner,) = make(count=1)
    user = Side(2, "auto", strict_backend=True)
    overall, _ = user.instance.link_clusters([info_of(owner.address)], 5000)
    assert overall is LLMStatusCode.LLM_LINK_FAILED
    assert "strict_backend is on" in caplog.text
    finalize(user)
    forget(caplog)


def reader(member, address):
    """Body of a peer that pulls once and then waits."""
    user = Side(7, "nixl", listen=False)
    link(user.instance, tuple(address))
    target = user.blocks(**BIG)
    user.manager.pull_blocks(BlocksCacheKey(1), target.cache, EVERY, EVERY)
    member.send("pulled")
    member.wait_end()


@pytest.mark.slow
@pytest.mark.expects_log("loses its link", "lost", "shut down", "connection", "now names")
def test_a_silent_reader_does_not_keep_memory(make):
    """It loses its link, the engine is closed; other links go on, over lanes."""
    owner, user = make("nixl", sync_kv_timeout=700)
    held = owner.blocks(seed=3, key=0, **BIG)
    with PeerGroup(timeout_s=60) as group:
        peer = group.start(reader, list(owner.address), name="reader")
        assert peer.receive() == "pulled"
        peer.freeze()
        begun = time.monotonic()
        owner.manager.unregister_cache(held.id)
        assert time.monotonic() - begun < 0.7 + 1.0
        with failing("LLM_NOT_YET_LINK", "describe_link"):
            owner.instance.describe_link(7)
        peer.thaw()
        assert pulled(owner, user)
        peer.kill()
        peer.wait()
    late = Side(9, "nixl")
    link(late.instance, owner.address)
    assert pulled(owner, late)
    assert "shut down at the peer" in facts(late)["channel"]["why_over_lanes"]
    finalize(late)
