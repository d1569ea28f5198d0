"""Every fault of a policy x every operation: one end, no byte astray, the next transfer works."""

import threading
import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMException,
    TransferConfig,
)
from llm_datadist.testing import FaultPolicy, FaultRule, inject_faults
from support.instances import BACKENDS, Side, eventually, finalize, link, linked_sides
from support.setup import info_of

TIMEOUT_S = 0.4
LATE_S = 0.1 + 1.0  # what is promised, and what a busy machine adds
TENSORS, BLOCKS, WORDS = 4, 8, 512
MOVED = [1, 2, 5]
SOURCE, TARGET, CANARY = 11, 22, 33

FAULTS = {
    "refuse": (FaultRule("refuse", nth=1), {"LLM_FAILED"}),
    "fail": (FaultRule("fail", nth=1, code="PEER_DEAD"), {"LLM_LINK_FAILED"}),
    "fail as gone": (FaultRule("fail", nth=1, code="LOCAL_GONE"), {"LLM_KV_CACHE_NOT_EXIST"}),
    "fail as denied": (FaultRule("fail", nth=1, code="DENIED"), {"LLM_PARAM_INVALID"}),
    "short delay": (FaultRule("delay", nth=1, delay_ms=50), {"LLM_SUCCESS"}),
    "long delay": (FaultRule("delay", nth=1, delay_ms=60_000), {"LLM_TIMEOUT"}),
    "short": (FaultRule("short", nth=1, code="TIMEOUT"), {"LLM_TIMEOUT"}),
    "short and silent": (FaultRule("short", nth=1, code="OK"), {"LLM_FAILED"}),
    "corrupt": (FaultRule("corrupt", nth=1), {"LLM_SUCCESS"}),
    "drop": (FaultRule("drop", nth=1), {"LLM_LINK_FAILED"}),
}
OPERATIONS = ["pull_blocks", "pull_cache", "push_blocks", "push_cache", "layerwise"]
WRITES = {"push_blocks", "push_cache", "layerwise"}


class _Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


class End:
    """A side whose two caches lie between canaries: `memory[tensor, unit, word]`."""

    def __init__(self, side, value):
        self.side = side
        self.all = np.full((2, TENSORS, BLOCKS + 2, WORDS), CANARY, np.uint64)
        self.memory = self.all[:, :, 1:-1]
        self.memory[:] = value
        self.blocks = side.blocks(key=0, data=self.memory[0])
        self.slots = side.slots(data=self.memory[1], keys=[CacheKey(side.id, 5)])

    def canaries_are_whole(self):
        edges = self.all[:, :, [0, -1]]
        return bool((edges == CANARY).all())


class Scene:
    """`local` makes one operation with `remote` at a time."""

    def __init__(self, sides):
        self.sides = sides
        self.remote = End(sides[0], SOURCE)
        self.local = End(sides[1], TARGET)

    def fill(self, operation):
        self.moved_to, moved_from = (
            (self.remote, self.local) if operation in WRITES else (self.local, self.remote)
        )
        self.moved_to.memory[:] = TARGET
        moved_from.memory[:] = SOURCE
        self.moved_from = moved_from

    def run(self, operation):
        """Carry it out; the name of its status."""
        manager, local, remote = self.sides[1].manager, self.local, self.remote
        key = CacheKeyByIdAndIndex(1, remote.slots.id, 3)
        try:
            if operation == "pull_blocks":
                manager.pull_blocks(BlocksCacheKey(1), local.blocks.cache, MOVED, MOVED)
            elif operation == "pull_cache":
                manager.pull_cache(key, local.slots.cache, 3)
            elif operation == "push_blocks":
                manager.push_blocks(BlocksCacheKey(1), local.blocks.cache, MOVED, MOVED)
            elif operation == "push_cache":
                manager.push_cache(key, local.slots.cache, 3)
            else:
                addrs = [tensor.ctypes.data for tensor in remote.memory[0]]
                task = manager.transfer_cache_async(
                    local.blocks.cache, _Ready(), [TransferConfig(1, addrs)], MOVED, MOVED
                )
                return task.synchronize().name
        except LLMException as error:
            return error.status_code.name
        return "LLM_SUCCESS"

    def expected(self, operation):
        wanted = np.full_like(self.moved_to.memory, TARGET)
        if operation.endswith("_cache"):
            wanted[1, :, 3] = SOURCE
        else:
            wanted[0][:, MOVED] = SOURCE
        return wanted

    def check_bytes(self, operation, status, fault):
        """Where an operation has ended, only what it was to move may have moved, and rightly."""
        assert self.local.canaries_are_whole()
        assert self.remote.canaries_are_whole()
        assert (self.moved_from.memory == SOURCE).all()
        target, wanted = self.moved_to.memory, self.expected(operation)
        if fault == "corrupt":
            assert (target.view("u1") != wanted.view("u1")).sum() == 1
        elif status == "LLM_SUCCESS":
            assert (target == wanted).all()
        else:
            changed = target != TARGET
            assert not (changed & (wanted == TARGET)).any(), "a byte that nobody asked to move"

    def link_again(self):
        link(self.sides[1].instance, self.sides[0].address)


@pytest.fixture(params=BACKENDS)
def scene(request):
    sides = linked_sides(request.param, sync_kv_timeout=int(TIMEOUT_S * 1000))
    yield Scene(sides)
    finalize(*sides)


@pytest.mark.slow
@pytest.mark.expects_log("layer", "lost", "dropped")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_fault(scene, operation):
    sides = scene.sides
    for fault, (rule, statuses) in FAULTS.items():
        scene.fill(operation)
        with inject_faults(sides[1].instance, FaultPolicy([rule], seed=1)) as policy:
            began = time.monotonic()
            status = scene.run(operation)
            assert time.monotonic() - began < TIMEOUT_S + LATE_S, fault
            assert status in statuses, fault
            assert [each.action for each in policy.decisions] == [rule.action]
            scene.check_bytes(operation, status, fault)
            before = scene.moved_to.all.copy()
            if fault == "drop":
                eventually(lambda: not sides[0].instance._engine.links.links())
                scene.link_again()
            time.sleep(0.02)
            assert (scene.moved_to.all == before).all(), f"{fault}: not quiet"
            assert scene.run(operation) == "LLM_SUCCESS", f"after {fault}"
            scene.check_bytes(operation, "LLM_SUCCESS", "")
            assert policy.posts == policy.completions


def test_a_failed_pull_consumes_no_key(scene):
    """A CacheKey that was not pulled can be pulled; one that was, cannot."""
    owner, user = scene.sides
    desc = CacheDesc(2, [1, WORDS], DataType.DT_UINT64)
    data = np.full((2, 1, WORDS), SOURCE, np.uint64)
    key = CacheKey(1, 77)
    owner.manager.register_cache(desc, [tensor.ctypes.data for tensor in data], [key])
    target = user.slots(tensors=2, units=1, words=WORDS)
    with inject_faults(user.instance, FaultPolicy([FaultRule("fail", nth=1)])):
        with pytest.raises(LLMException, match="SYSTEM"):
            user.manager.pull_cache(key, target.cache)
        user.manager.pull_cache(key, target.cache)
    assert (target.data == SOURCE).all()


@pytest.mark.parametrize("write", [False, True])
def test_a_delayed_transfer_finds_that_its_cache_is_gone(scene, write):
    """Unregistering is final for what a fault has held back, too."""
    scene.fill("push_blocks" if write else "pull_blocks")
    end = scene.moved_to
    answers = []
    rule = FaultRule("delay", delay_ms=150)
    with inject_faults(scene.sides[1].instance, FaultPolicy([rule])) as policy:
        operation = "push_blocks" if write else "pull_blocks"
        caller = threading.Thread(target=lambda: answers.append(scene.run(operation)))
        caller.start()
        eventually(lambda: policy.posts)
        end.side.manager.unregister_cache(end.blocks.id)
        end.memory[:] = CANARY
        caller.join()
    assert answers == ["LLM_KV_CACHE_NOT_EXIST"]
    assert (end.all == CANARY).all()


def test_a_link_that_ends_ends_a_delay(scene):
    rule = FaultRule("delay", delay_ms=60_000)
    answers = []
    with inject_faults(scene.sides[1].instance, FaultPolicy([rule])) as policy:
        caller = threading.Thread(target=lambda: answers.append(scene.run("pull_blocks")))
        caller.start()
        eventually(lambda: policy.posts)
        began = time.monotonic()
        scene.sides[1].instance.unlink_clusters([info_of(cluster_id=1)], force=True)
        caller.join()
    assert time.monotonic() - began < TIMEOUT_S
    assert answers == ["LLM_LINK_FAILED"]


def test_a_seed_repeats_a_run(scene):
    """The same calls in the same order meet the same faults and end alike."""
    rules = [
        FaultRule("refuse", chance=0.2),
        FaultRule("short", chance=0.2, code="OK"),
        FaultRule("fail", chance=0.2, write=True, code="TIMEOUT"),
    ]

    def run(policy):
        with inject_faults(scene.sides[1].instance, policy):
            return [scene.run(OPERATIONS[number % 4]) for number in range(40)]

    policy = FaultPolicy(rules, seed=4)
    statuses = run(policy)
    assert {"LLM_SUCCESS", "LLM_FAILED", "LLM_TIMEOUT"} <= set(statuses)
    assert run(FaultPolicy(rules, seed=4)) == statuses
    assert run(FaultPolicy.replay(policy.decisions)) == statuses
    assert run(FaultPolicy(rules, seed=5)) != statuses


def test_links_made_meanwhile_are_meant_too_and_only_meanwhile(scene):
    owner, user = scene.sides
    third = Side(3, "auto")
    try:
        third.blocks(key=0, data=np.full((TENSORS, BLOCKS, WORDS), SOURCE, np.uint64))
        with inject_faults(user.instance, FaultPolicy([FaultRule("refuse")])) as policy:
            link(user.instance, third.address)
            with pytest.raises(LLMException, match="SYSTEM"):
                user.manager.pull_blocks(BlocksCacheKey(3), scene.local.blocks.cache, [0], [0])
            assert "FaultPolicy" in str(user.instance.describe_link(3))
            owner.manager.pull_blocks(BlocksCacheKey(2), scene.remote.blocks.cache, [0], [0])
        posts = policy.posts
        user.manager.pull_blocks(BlocksCacheKey(3), scene.local.blocks.cache, [0], [0])
        assert policy.posts == posts
        assert (scene.local.memory[0][:, 0] == SOURCE).all()
    finally:
        finalize(third)


def test_an_instance_that_is_not_initialized():
    side = Side(1, "host")
    finalize(side)
    with (
        pytest.raises(RuntimeError, match="not initialized"),
        inject_faults(side.instance, FaultPolicy()),
    ):
        pass
