"""Every call that may wait ends in time, whatever the peer does: docs/reference/bounds.md.

The peer is frozen, or cut off from this end, or dead and known to be so; and it dies while calls
wait for it. Bounds of time are wide: they tell a bound that holds from none, on busy machines.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    TransferConfig,
)
from llm_datadist.layouts import dense
from llm_datadist.testing import Killed, PeerGroup
from support.instances import Side, eventually, finalize, initialized, link
from support.proxy import Fault, Proxy
from support.rig import forget
from support.setup import info_of

LONG = bool(os.environ.get("LDD_LONG"))
TABLE = Path(__file__).parents[2] / "docs/reference/bounds.md"
SYNC_MS = 300
ASKED_MS = 250  # given to a call
SLACK_S = 1.0
DEAD_S = 1.0
AT_ONCE, ASKED, SYNC = 0.0, ASKED_MS / 1000, SYNC_MS / 1000
OK = {"LLM_SUCCESS"}
LATE = {"LLM_TIMEOUT"}
NONE = {"LLM_NOT_YET_LINK"}
UNTOLD = {"LLM_NOTIFY_PROMPT_UNLINK_FAILED"}
HELD = {"LLM_EXIST_LINK"}
GONE = {"LLM_LINK_FAILED", "LLM_NOT_YET_LINK"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.expects_log(
        "lost", "loses its link", "layer", "link_clusters: ", "lane", "connection from .* closed"
    ),
]


class Expected(NamedTuple):
    """How a call ends at a peer that is frozen or cut off, and how at one that is known as dead.

    Attributes:
        silent, dead: Statuses.
        bound_s: With a silent peer, and not before when it is the status that it is late.
        memory: With a silent peer when its memory can be read without it.
    """

    silent: set
    dead: set
    bound_s: float = AT_ONCE
    memory: set | None = None


#: In this order; those that take the link down at the end, each with a new one.
CALLS = {
    "init": Expected(OK, OK),
    "link_clusters": Expected(LATE, {"LLM_LINK_FAILED"}, ASKED),
    "check_link_status": Expected(LATE, NONE, SYNC),
    "describe_link": Expected(OK, NONE),
    "describe_links": Expected(OK, OK),
    "describe_remote_caches": Expected(LATE, NONE, SYNC, OK),
    "describe_relinks": Expected(OK, OK),
    "link": Expected(OK, OK),
    "query_register_mem_status": Expected(OK, OK),
    "describe_domain": Expected(OK, OK),
    "unlink": Expected(OK, OK),
    "switch_role": Expected(HELD, OK),
    "register_cache": Expected(OK, OK),
    "register_blocks_cache": Expected(OK, OK),
    "unregister_cache": Expected(OK, OK, SYNC),
    "allocate_cache": Expected(OK, OK),
    "deallocate_cache": Expected(OK, OK, SYNC),
    "allocate_blocks_cache": Expected(OK, OK),
    "deallocate_blocks_cache": Expected(OK, OK, SYNC),
    "remove_cache_key": Expected(OK, OK, SYNC),
    "pull_cache": Expected(LATE, NONE, SYNC, OK),
    "pull_blocks": Expected(LATE, NONE, SYNC, OK),
    "pull_resharded": Expected(LATE, NONE, SYNC, OK),
    "explain_resharded": Expected(LATE, NONE, SYNC, OK),
    "push_blocks": Expected(LATE, NONE, SYNC),
    "push_cache": Expected(LATE, NONE, SYNC),
    "push_resharded": Expected(LATE, NONE, SYNC),
    "transfer_cache_async": Expected(OK, OK),
    "CacheTask.synchronize": Expected(LATE, NONE, SYNC),
    "CacheTask.get_results": Expected(LATE, NONE, SYNC),
    "CacheTask.cancel": Expected(OK, OK, SYNC),
    "copy_cache": Expected(OK, OK),
    "copy_blocks": Expected(OK, OK),
    "swap_blocks": Expected(OK, OK),
    "faulted_ranges": Expected(OK, OK),
    "remap_registered_memory": Expected(OK, OK, SYNC),
    "unlink_clusters": Expected(UNTOLD, UNTOLD, ASKED),
    "unlink_clusters force": Expected(OK, OK),
    "finalize": Expected(OK, OK),
}
LAYOUT = {
    "axes": "NHD",
    "layers": range(2),
    "kv_heads": 8,
    "heads": range(8),
    "head_size": 4,
    "data_type": DataType.DT_UINT64,
    "block_tokens": 4,
}
LAST = ("remap_registered_memory", "unlink_clusters", "unlink_clusters force", "finalize")


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def stand(member, backend):
    """Body of the peer: caches for the other end, until it is asked to end."""
    side = Side(1, backend)
    blocks, slots = side.blocks(1, key=0, layout=dense(**LAYOUT)), side.slots(2)
    member.send([list(side.address), slots.id, [tensor.ctypes.data for tensor in blocks.data]])
    member.receive(600)
    finalize(side)


class Peer:
    """A process whose caches the calls are about, behind a proxy."""

    def __init__(self, group, backend):
        self.process = group.start(stand, backend)
        address, self.slots_id, self.addrs = self.process.receive()
        self.proxy = Proxy(address)

    def suffer(self, state, side):
        if state == "frozen":
            self.process.freeze()
        elif state == "cut":
            self.proxy.spoil(Fault("hold", None))
        else:
            self.process.kill()
            assert self.process.wait() == Killed(signal.SIGKILL)
            eventually(lambda: not side.instance._engine.links.links())

    def recover(self):
        self.proxy.heal()
        self.process.thaw()

    def close(self):
        if self.process.exit is None:
            self.recover()
            self.process.send(None)
            self.process.wait()
        self.proxy.close()


class Caller:
    """This end: its caches, and each call with good arguments."""

    def __init__(self, backend, peer, sync_ms=SYNC_MS):
        self.side = Side(2, backend, pool=1 << 20, sync_kv_timeout=sync_ms, peer_timeout_ms=120_000)
        self.manager, self.instance = self.side.manager, self.side.instance
        self.peer = peer
        self.blocks = self.side.blocks(3, layout=dense(**LAYOUT))
        self.slots = self.side.slots(4)
        self.remapped = self.side.blocks(5)  # of no other call: transfers of it may raise
        desc = CacheDesc(4, [8, 128], DataType.DT_UINT64, Placement.HOST)
        self.memory = np.zeros((4, 8, 128), np.uint64)
        addrs = [tensor.ctypes.data for tensor in self.memory]
        self.host = Cache.create_cpu_cache(desc, addrs)
        self.desc, self.addrs = CacheDesc(4, [8, 128], DataType.DT_UINT64), addrs
        self.made = self.task = self.comm_id = None
        self.link()
        self.manager.pull_blocks(BlocksCacheKey(1), self.blocks.cache, [0], [0])

    def link(self):
        link(self.instance, self.peer.proxy.address)

    def call(self, name):
        """Make a call; return the name of the status that it came to, and its seconds."""
        began = time.monotonic()
        try:
            value = getattr(self, name.replace(" ", "_").replace(".", "_"))()
        except LLMException as error:
            value = error.status_code
        if isinstance(value, tuple | list) and value:
            value = value[0]
        took = time.monotonic() - began
        return value.name if isinstance(value, LLMStatusCode) else "LLM_SUCCESS", took

    def init(self):
        initialized(3, "auto").finalize()

    def link_clusters(self, timeout_ms=ASKED_MS):
        return self.instance.link_clusters([info_of(self.peer.proxy.address)], timeout_ms)

    def check_link_status(self):
        self.instance.check_link_status(1)

    def describe_link(self):
        assert self.instance.describe_link(1)["state"] == "LINKED"

    def describe_links(self):
        self.instance.describe_links()

    def describe_remote_caches(self):
        assert self.instance.describe_remote_caches(1)

    def describe_relinks(self):
        self.instance.describe_relinks()

    def link_(self):
        server = {"server_id": "a", "host_ip": "127.0.0.1"}
        devices = [{"device_id": f"{n}", "device_ip": "", "rank_id": f"{n}"} for n in (0, 1)]
        table = {"version": "1.0", "server_list": [server | {"device": devices}]}
        self.comm_id = self.instance.link("a", {1: 0, 2: 1}, json.dumps(table))

    def query_register_mem_status(self):
        assert self.instance.query_register_mem_status(self.comm_id).name == "PREPARING"

    def describe_domain(self):
        self.instance.describe_domain(self.comm_id)

    def unlink(self):
        self.instance.unlink(self.comm_id)

    def switch_role(self):
        self.instance.switch_role(LLMRole.DECODER)

    def register_cache(self):
        self.made = self.manager.register_cache(self.desc, self.addrs)

    def register_blocks_cache(self):
        self.manager.register_blocks_cache(self.desc, self.addrs, BlocksCacheKey(2, 9))

    def unregister_cache(self):
        self.manager.unregister_cache(self.made.cache_id)

    def allocate_cache(self):
        self.made = self.manager.allocate_cache(self.desc, [CacheKey(2, n) for n in range(8)])

    def deallocate_cache(self):
        self.manager.deallocate_cache(self.made)

    def allocate_blocks_cache(self):
        self.made = self.manager.allocate_blocks_cache(self.desc)

    def deallocate_blocks_cache(self):
        self.manager.deallocate_blocks_cache(self.made)

    def remove_cache_key(self):
        self.manager.remove_cache_key(CacheKey(2, 0))

    def pull_cache(self):
        self.manager.pull_cache(CacheKeyByIdAndIndex(1, self.peer.slots_id), self.slots.cache)

    def pull_blocks(self):
        self.manager.pull_blocks(BlocksCacheKey(1), self.blocks.cache, [1, 2], [3, 4])

    def pull_resharded(self):
        self.manager.pull_resharded(*self.resharded())

    def explain_resharded(self):
        self.manager.explain_resharded(*self.resharded())

    def resharded(self):
        """Arguments of a call that moves blocks 1 and 2 of the peer, or to it."""
        return [BlocksCacheKey(1)], self.blocks.cache, [[1, 2]], [3, 4], 8

    def push_blocks(self):
        self.manager.push_blocks(BlocksCacheKey(1), self.blocks.cache, [1, 2], [3, 4])

    def push_cache(self):
        self.manager.push_cache(CacheKeyByIdAndIndex(1, self.peer.slots_id), self.slots.cache)

    def push_resharded(self):
        keys, cache, remote_blocks, local_blocks, num_tokens = self.resharded()
        self.manager.push_resharded(keys, cache, local_blocks, remote_blocks, num_tokens)

    def transfer_cache_async(self):
        config = TransferConfig(1, self.peer.addrs)
        self.task = self.manager.transfer_cache_async(
            self.blocks.cache, Ready(), [config], [0], [1]
        )

    def CacheTask_synchronize(self):
        return self.task.synchronize()

    def CacheTask_get_results(self):
        self.transfer_cache_async()
        return self.task.get_results()

    def CacheTask_cancel(self):
        self.transfer_cache_async()
        self.task.cancel()

    def copy_cache(self):
        self.manager.copy_cache(self.slots.cache, self.slots.cache, 1, 0)

    def copy_blocks(self):
        self.manager.copy_blocks(self.blocks.cache, {0: [1]})

    def swap_blocks(self):
        self.manager.swap_blocks(self.blocks.cache, self.host, {0: 1})

    def faulted_ranges(self):
        self.manager.faulted_ranges()

    def remap_registered_memory(self):
        tensor = self.remapped.data[0]
        info = MemInfo(Memtype.MEM_TYPE_DEVICE, tensor.ctypes.data, tensor.nbytes)
        self.manager.remap_registered_memory(info)

    def unlink_clusters(self, timeout_ms=ASKED_MS):
        return self.instance.unlink_clusters([info_of(cluster_id=1)], timeout_ms)

    def unlink_clusters_force(self):
        return self.instance.unlink_clusters([info_of(cluster_id=1)], ASKED_MS, force=True)

    def finalize(self):
        self.instance.finalize()

    def close(self):
        self.manager = self.made = self.task = None
        finalize(self.side)


@pytest.fixture
def scene(caplog):
    """Make a peer and a caller that has linked it."""
    made = []
    with PeerGroup(timeout_s=60) as group:

        def make(backend, **options):
            made.append(Peer(group, backend))
            made.append(Caller(backend, made[0], **options))
            return made

        yield make
        for each in reversed(made):
            each.close()
        made.clear()
        forget(caplog)


def judge(name, state, backend, status, took):
    """Return what is wrong about how a call ended; empty when nothing is."""
    expected = CALLS[name]
    wanted = expected.dead if state == "dead" else expected.silent
    if state != "dead" and backend == "host" and expected.memory is not None:
        wanted = expected.memory
    bound_s = AT_ONCE if state == "dead" else expected.bound_s
    if status not in wanted:
        return f"{name}: {status}, not {wanted}"
    if status in LATE and took < bound_s - 0.01:
        return f"{name}: {status} after {took:.2f} s, before its time"
    return f"{name}: took {took:.2f} s" if took > bound_s + SLACK_S else ""


@pytest.mark.parametrize(
    ("backend", "state"),
    [("host", "frozen"), ("tcp", "frozen"), ("tcp", "cut"), ("tcp", "dead")]
    + [("host", "cut"), ("host", "dead")] * LONG,
)
def test_every_call_is_in_time(scene, backend, state):
    peer, caller = scene(backend)
    peer.suffer(state, caller.side)
    problems = []
    for name in CALLS:
        if name in LAST[1:] and state != "dead":
            peer.recover()
            caller.unlink_clusters()
            caller.link()
            peer.suffer(state, caller.side)
        status, took = caller.call("link_" if name == "link" else name)
        problems.append(judge(name, state, backend, status, took))
    assert not any(problems), "\n".join(filter(None, problems))


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_calls_end_with_the_peer_that_they_wait_for(scene, backend):
    """With a second of its death; their own deadlines are far away."""
    peer, caller = scene(backend, sync_ms=30_000)
    other = Side(3, backend, listen=False)
    try:
        link(other.instance, peer.proxy.address)
        peer.process.freeze()
        info = info_of(cluster_id=1)
        calls = {
            "check_link_status": GONE,
            "link_clusters": {"LLM_LINK_FAILED"},
            "push_blocks": GONE,
            "push_cache": GONE,
            "CacheTask_get_results": GONE,
            "remap_registered_memory": OK,
        } | ({} if backend == "host" else {"pull_blocks": GONE, "pull_cache": GONE})
        ended = {}

        def run(name, call, *arguments):
            ended[name] = (*call(*arguments), time.monotonic())

        def unlink():
            overall, _ = other.instance.unlink_clusters([info], 30_000)
            return overall.name, 0.0

        caller.link_clusters = lambda: Caller.link_clusters(caller, 30_000)
        threads = [threading.Thread(target=run, args=(n, caller.call, n)) for n in calls]
        threads.append(threading.Thread(target=run, args=("unlink_clusters", unlink)))
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert not ended, ended
        died = time.monotonic()
        peer.process.kill()
        for thread in threads:
            thread.join(20)
        assert peer.process.wait() == Killed(signal.SIGKILL)
        for name, statuses in (calls | {"unlink_clusters": UNTOLD}).items():
            status, _, when = ended[name]
            assert status in statuses, (name, status)
            assert when - died < DEAD_S + SLACK_S, (name, when - died)
    finally:
        finalize(other)


def test_the_table_names_every_call():
    """That of the document, and that of this test."""
    rows = [line.split("|")[1] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    named = {name.strip(" `") for row in rows for name in row.split(",")}
    assert named == {name.removesuffix(" force") for name in CALLS}
