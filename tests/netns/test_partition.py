"""The network is cut under a transfer: no reset, no end, only silence."""

import time

import pytest

from support.rig import LATE_S, NOISE_S
from support.station import OK, digest, pattern

BLOCKS, WORDS = 64, 65536  # 128 MiB
EVERY = list(range(BLOCKS))
TIMEOUT_S = 1.0

pytestmark = [pytest.mark.netns, pytest.mark.slow]


@pytest.fixture
def pair(network, station):
    """Two hosts, a station on each; the second has linked the first."""
    hosts = network(2)
    options = {
        "transfer_backend": "tcp",
        "blocks": BLOCKS,
        "words": WORDS,
        "sync_kv_timeout": int(TIMEOUT_S * 1000),
    }
    remote = station(hosts[0], 1, **options)
    local = station(hosts[1], 2, listen=False, **options)
    assert local.call("link", remote.address).status == OK
    local.value("fill", 1)
    remote.value("fill", 2)
    return hosts, remote, local


def cut_during(operation, hosts, local):
    """Cut the network once an operation has moved something; return how it ended."""
    while True:
        local.send("repeat", operation, 1, EVERY, EVERY, 20.0)
        time.sleep(0.3)
        hosts[0].down()
        answer = local.answer()
        assert answer.status != OK
        return answer


@pytest.mark.parametrize("operation", ["pull", "push"])
def test_the_call_ends_and_nothing_follows(pair, operation):
    hosts, remote, local = pair
    answer = cut_during(operation, hosts, local)
    assert answer.status == "LLM_TIMEOUT", answer
    assert TIMEOUT_S <= answer.value < TIMEOUT_S + LATE_S + NOISE_S
    before = [local.value("digest"), remote.value("digest")]
    time.sleep(0.5)
    assert [local.value("digest"), remote.value("digest")] == before
    hosts[0].up()
    time.sleep(1.0)  # what was under way arrives now
    assert [local.value("digest"), remote.value("digest")] == before


@pytest.mark.parametrize("operation", ["pull", "push"])
def test_the_next_transfer_works(pair, operation):
    hosts, remote, local = pair
    cut_during(operation, hosts, local)
    time.sleep(0.2)
    hosts[0].up()
    source, target = (remote, local) if operation == "pull" else (local, remote)
    source.value("fill", 5)
    deadline = time.monotonic() + 10
    while (answer := local.call(operation, 1, EVERY, EVERY)).status != OK:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    assert target.value("digest") == digest(pattern(5, BLOCKS, WORDS))


def test_a_link_over_a_cut_network(pair):
    hosts, remote, local = pair
    hosts[0].down()
    local.value("unlink_forced", 1)
    answer = local.call("link", remote.address, 500)
    assert answer.status == "LLM_TIMEOUT"
    assert answer.seconds < 1.0
    hosts[0].up()
    assert local.call("link", remote.address, 8000).status == OK
    local.value("pull", 1, [0], [0])
