"""Two instances whose CLOCK_MONOTONIC differ although they have one address: time namespaces.

The same is so for instances behind a forward of ssh or kubectl, which cannot be had here.
"""

from __future__ import annotations

import subprocess
import time

import pytest

from llm_datadist._protocol.codec import Kind
from llm_datadist.testing import PeerGroup
from support.proxy import Fault, Proxy
from support.station import OK, RemoteStation, Station, digest, pattern

BLOCKS, WORDS = 16, 2048  # of each of 4 tensors: 1 MiB in all
EVERY = list(range(BLOCKS))
DEADLINE_S = 0.5

pytestmark = pytest.mark.slow


def in_time_namespace(offset_s):
    """Return the command that runs another with a clock that is ahead by so much."""
    return ("unshare", "--time", "--monotonic", str(offset_s), "--fork", "--kill-child")


@pytest.fixture(params=["ahead", "behind"])
def offset_s(request):
    """How far the other clock is ahead; it cannot go below 0."""
    found = 1_000_000 if request.param == "ahead" else -int(time.monotonic() / 2)
    command = (*in_time_namespace(found), "true")
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no time namespaces here: {tried.stderr.strip()}")
    return found


@pytest.fixture
def group():
    with PeerGroup(timeout_s=60) as made:
        yield made


@pytest.fixture
def pair(group, offset_s):
    """Make two stations of which one has another clock: the one here, and one that it links."""
    made = []

    def make(**options):
        options = {"blocks": BLOCKS, "words": WORDS} | options
        remote = RemoteStation(group, 1, command_prefix=in_time_namespace(offset_s), **options)
        proxy = Proxy(remote.address)
        local = Station(2, "127.0.0.1:0", **options)
        made.extend([proxy, local])
        assert local.call("link", proxy.address).status == OK
        local.fill(1)
        remote.value("fill", 2)
        return local, remote, proxy

    yield make
    for each in reversed(made):
        each.close()


@pytest.mark.parametrize("backend", ["auto", "tcp"])
def test_pulls_and_pushes_work_from_both_sides(pair, backend):
    local, remote, _ = pair(transfer_backend=backend, sync_kv_timeout=5000)
    assert local.call("pull", 1, EVERY, EVERY).status == OK
    assert digest(local.data) == digest(pattern(2, BLOCKS, WORDS))
    local.fill(3)
    assert local.call("push", 1, EVERY, EVERY).status == OK
    assert remote.value("digest") == digest(pattern(3, BLOCKS, WORDS))
    local.fill(4)
    assert remote.call("pull", 2, EVERY, EVERY).status == OK
    assert remote.value("digest") == digest(pattern(4, BLOCKS, WORDS))
    remote.value("fill", 5)
    assert remote.call("push", 2, EVERY, EVERY).status == OK
    assert digest(local.data) == digest(pattern(5, BLOCKS, WORDS))


@pytest.mark.parametrize("backend", ["auto", "tcp"])
def test_nothing_lands_of_a_push_that_arrives_after_its_deadline(pair, backend):
    """Although the time left that it carries counts from its arrival on."""
    local, remote, proxy = pair(transfer_backend=backend, sync_kv_timeout=int(DEADLINE_S * 1000))
    proxy.spoil(Fault("delay", Kind.LANE, "up", value=DEADLINE_S + 0.15))
    before = remote.value("digest")
    assert local.call("push", 1, [0], [0]).status == "LLM_TIMEOUT"
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        assert remote.value("digest") == before
