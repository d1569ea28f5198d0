"""Either side killed or frozen at random moments under load.

The long form (`LDD_LONG=1`, `make kill-freeze`) tries 200 moments, and LDD_MOMENTS any number;
LDD_SEED chooses others.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llm_datadist.testing import Killed, PeerFailed, PeerGroup
from support.authority import Authority
from support.nixl_backends import NEEDS_NIXL
from support.rig import LATE_S, NOISE_S
from support.station import OK, TENSORS, RemoteStation, digest

LONG = bool(os.environ.get("LDD_LONG"))
MOMENTS = int(os.environ.get("LDD_MOMENTS", "200" if LONG else "2"))
SEED = int(os.environ.get("LDD_SEED", "1"))
BLOCKS, WORDS = 16, 32768
TIMEOUT_S = 0.5
DEAD_PEER_S = 1.0
NEXT_WORKS_S = 5.0
GONE = {"LLM_LINK_FAILED", "LLM_NOT_YET_LINK"}
UCX_SAYS = "Fatal: unexpected error: Endpoint timeout"
#: It aborts; the second, when Python's report of that meets a thread at the wrong moment.
ENDED_BY_UCX = (Killed(signal.SIGABRT), Killed(signal.SIGSEGV))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 10 * MOMENTS)]


class Scene:
    """A station that listens and one that has linked it and makes the calls."""

    def __init__(self, group, way, printed, **options):
        self.group = group
        self.way = way
        self.printed = printed
        self.options = options | {
            "sync_kv_timeout": int(TIMEOUT_S * 1000),
            "blocks": BLOCKS,
            "words": WORDS,
        }
        self.remote = self.station(1)
        self.local = self.station(2)
        self.link()

    def station(self, cluster_id):
        with stderr_of_peers(self.printed):
            made = RemoteStation(self.group, cluster_id, **self.options)
        made.value("fill", cluster_id)
        return made

    def link(self):
        answer = self.local.call("link", self.remote.address)
        assert answer.status == OK, answer

    def load(self, seed):
        """Let `local` make calls until one fails; `here.answer` tells."""
        self.local.send("load", 1, seed, 5.0)

    def works(self):
        """Wait until calls come through again, without linking."""
        deadline = time.monotonic() + NEXT_WORKS_S
        while (answer := self.local.call("load", 1, 0, 0.05)).status != OK:
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)

    @property
    def addrs(self):
        return self.remote.value("tensor_addrs")


def memory_of(station, addrs):
    """Digest a station's cache from outside its process."""
    size = BLOCKS * WORDS * 8
    with Path(f"/proc/{station.peer.pid}/mem").open("rb", buffering=0) as memory:
        parts = []
        for addr in addrs:
            memory.seek(addr)
            parts.append(memory.read(size))
    assert [len(part) for part in parts] == [size] * TENSORS
    return [digest_of(part) for part in parts]


def digest_of(data):
    return digest(np.frombuffer(data, np.uint8))


#: Backends, and the transports that UCX may use under NIXL.
WAYS = {
    "host": ("host", ""),
    "tcp": ("tcp", ""),
    "encrypted": ("tcp", ""),
    "nixl-tcp": ("nixl", "tcp"),
    "nixl-shm": ("nixl", "shm,cma,self,tcp"),
}
EVERY_WAY = [pytest.param(name, marks=NEEDS_NIXL if "nixl" in name else ()) for name in WAYS]


@pytest.fixture(params=[way for way in EVERY_WAY if LONG or way.values != ("encrypted",)])
def scene(request, monkeypatch, tmp_path):
    backend, transport = WAYS[request.param]
    options = {"transfer_backend": backend}
    if request.param == "encrypted":
        options |= Authority(tmp_path).issue() | {"tls_lanes": True}
    if transport:
        monkeypatch.setenv("UCX_TLS", transport)
        monkeypatch.setenv("UCX_LOG_LEVEL", "fatal")
        monkeypatch.setenv("NIXL_LOG_LEVEL", "FATAL")
    printed = tmp_path / "printed"
    with PeerGroup(timeout_s=60) as group:
        yield Scene(group, request.param, printed, **options)
    sys.stderr.write(printed.read_text(errors="replace"))


@contextlib.contextmanager
def stderr_of_peers(path):
    """Peers that are started meanwhile print there, as long as they live."""
    before = os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def moments(test, low, high):
    """Yield seconds to wait, the same for the same LDD_SEED."""
    chance = random.Random(f"{SEED} {test}")
    for number in range(MOMENTS):
        print(f"moment {number}")
        yield chance.uniform(low, high)


def test_the_target_is_killed(scene):
    for moment in moments("kill target", 0.0, 0.2):
        scene.load(SEED)
        time.sleep(moment)
        killed = time.monotonic()
        scene.remote.peer.kill()
        assert scene.remote.peer.wait() == Killed(signal.SIGKILL)
        answer = scene.local.answer()
        assert time.monotonic() - killed < DEAD_PEER_S + NOISE_S
        assert answer.status in GONE, answer
        scene.remote = scene.station(1)  # its successor, under the same id
        scene.link()
        scene.works()


def test_the_initiator_is_killed(scene):
    fds, ended_by_ucx = [], 0
    for moment in moments("kill initiator", 0.0, 0.2):
        scene.load(SEED)
        time.sleep(moment)
        scene.local.peer.kill()
        assert scene.local.peer.wait() == Killed(signal.SIGKILL)
        try:
            fds.append(descriptors_when_quiet(scene.remote))
        except PeerFailed:
            # UCX ends a process that answers a read whose asker has died: docs/design/nixl.md.
            assert scene.way == "nixl-tcp"
            assert scene.remote.peer.wait() in ENDED_BY_UCX
            ended_by_ucx += 1
            assert scene.printed.read_text(errors="replace").count(UCX_SAYS) == ended_by_ucx
            fds.clear()
            scene.remote = scene.station(1)
        scene.local = scene.station(2)
        scene.link()
        scene.works()
    print(f"{ended_by_ucx} of {MOMENTS} targets were ended by UCX")
    assert ended_by_ucx <= 1 + MOMENTS // 10
    assert max(fds, default=0) <= min(fds, default=0) + 1, "descriptors were left behind"


def descriptors_when_quiet(remote):
    """Return how many files a station has open that has lost its peer, and whose memory rests."""
    deadline = time.monotonic() + DEAD_PEER_S + NOISE_S
    while remote.call("describe", 2).status == OK:
        assert time.monotonic() < deadline, "the dead peer's link is still there"
    before = remote.value("digest")
    time.sleep(0.1)
    assert remote.value("digest") == before
    return remote.value("fds")


@pytest.mark.parametrize("scene", EVERY_WAY, indirect=True)
def test_the_target_is_frozen(scene):
    """Reads of a frozen process of this host go on; all else ends by its deadline."""
    addrs = scene.addrs
    for moment in moments("freeze target", 0.0, 0.2):
        scene.load(SEED)
        time.sleep(moment)
        scene.remote.peer.freeze()
        try:
            answer = scene.local.answer()
            assert answer.status == "LLM_TIMEOUT", answer
            assert TIMEOUT_S <= answer.value < TIMEOUT_S + LATE_S + NOISE_S, answer
            before = memory_of(scene.remote, addrs)
        finally:
            scene.remote.peer.thaw()
        time.sleep(0.2)
        assert memory_of(scene.remote, addrs) == before, "bytes landed after the call had raised"
        scene.works()


def test_the_target_is_frozen_for_a_moment(scene):
    """Less than the deadline: the only effect is a delay."""
    for moment in moments("blink target", 0.0, 0.2):
        scene.local.send("load", 1, SEED, 0.6)
        time.sleep(moment)
        scene.remote.peer.freeze()
        time.sleep(0.2)
        scene.remote.peer.thaw()
        assert scene.local.answer().status == OK


def test_the_initiator_is_frozen(scene):
    """It wakes up after its call's deadline: the call ends at once, and what follows works."""
    addrs = scene.addrs
    for moment in moments("freeze initiator", 0.0, 0.2):
        scene.local.send("load", 1, SEED, 1.0)
        time.sleep(moment)
        scene.local.peer.freeze()
        time.sleep(TIMEOUT_S + 0.3)
        before = memory_of(scene.remote, addrs)
        time.sleep(0.1)
        assert memory_of(scene.remote, addrs) == before, "a frozen peer's transfer goes on"
        scene.local.peer.thaw()
        assert scene.local.answer().status in {OK, "LLM_TIMEOUT"}
        scene.works()
