"""NIXL over UCX's TCP transport between hosts; UCX finds its way by itself."""

import time

import pytest

from support.nixl_backends import NEEDS_NIXL
from support.rig import LATE_S, NOISE_S
from support.station import OK, TENSORS, digest, pattern

BLOCKS, WORDS = 16, 16384  # 2 MiB a tensor: more than what goes over lanes
EVERY = list(range(BLOCKS))
MOVED_BYTES = TENSORS * BLOCKS * WORDS * 8
TIMEOUT_MS = 2000

pytestmark = [pytest.mark.netns, pytest.mark.slow, NEEDS_NIXL]


@pytest.fixture(autouse=True)
def _tcp(monkeypatch):
    monkeypatch.setenv("UCX_TLS", "tcp")
    monkeypatch.setenv("UCX_LOG_LEVEL", "fatal")
    monkeypatch.setenv("NIXL_LOG_LEVEL", "FATAL")


@pytest.fixture
def pair(network, station):
    """Two stations on two hosts, the second linked to the first, and the second's host."""
    hosts = network(2)
    options = {
        "transfer_backend": "nixl",
        "blocks": BLOCKS,
        "words": WORDS,
        "sync_kv_timeout": TIMEOUT_MS,
    }
    first = station(hosts[0], 1, **options)
    second = station(hosts[1], 2, listen=False, **options)
    assert second.call("link", first.address).status == OK
    return first, second, hosts[1]


def whole(seed):
    return digest(pattern(seed, BLOCKS, WORDS))


def test_pull_push_and_layers_both_ways(pair):
    first, second, _ = pair
    for one, other in ((second, first), (first, second)):
        one.value("fill", 1)
        other.value("fill", 2)
        before = one.value("received_bytes", "eth0")
        one.value("pull", other.cluster_id, EVERY[::-1], EVERY[::-1])
        assert one.value("digest") == whole(2)
        assert one.value("received_bytes", "eth0") - before > MOVED_BYTES
        one.value("fill", 3)
        one.value("push", other.cluster_id, EVERY, EVERY)
        assert other.value("digest") == whole(3)
        one.value("fill", 4)
        addrs = other.value("tensor_addrs")
        assert one.call("layerwise", other.cluster_id, addrs, EVERY, EVERY).status == OK
        assert other.value("digest") == whole(4)
        channel = one.value("describe", other.cluster_id)["channel"]
        assert channel["transfers"] >= 3
        assert channel["over_lanes"] == 0, channel["why_over_lanes"]


@pytest.mark.parametrize("operation", ["pull", "push"])
def test_a_network_that_is_cut(pair, operation):
    """No answer, no reset: the call ends by its deadline, and nothing lands when it is back."""
    first, second, host = pair
    second.value("fill", 1)
    first.value("fill", 2)
    second.send("repeat", operation, 1, EVERY, EVERY, 20.0)
    time.sleep(0.3)
    host.down()
    answer = second.answer()
    assert answer.status == "LLM_TIMEOUT", answer
    assert answer.value < TIMEOUT_MS / 1000 + LATE_S + NOISE_S
    before = second.value("digest"), first.value("digest")
    host.up()
    time.sleep(1.0)
    assert (second.value("digest"), first.value("digest")) == before, "bytes landed after the end"
