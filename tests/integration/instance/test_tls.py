"""Links inside mutual TLS, with real certificates (api.md 3: extension)."""

import json
import socket
import time

import pytest

from llm_datadist import (
    BlocksCacheKey,
    LayerSynchronizer,
    LLMStatusCode,
    RegisterMemStatus,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from support.authority import Authority

S = LLMStatusCode
OK = (S.LLM_SUCCESS, [S.LLM_SUCCESS])
REFUSED = (S.LLM_LINK_FAILED, [S.LLM_LINK_FAILED])
EXPIRED = (-9, -2)
EVERY = list(range(8))
CLOSED = pytest.mark.expects_log("link_clusters: ", "^connection from ")
MODES = pytest.mark.parametrize(
    "mode", [{}, {"tls_lanes": True}, {"tls_lanes": True, "link_secret": "s"}], ids=str
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(directory):
    return Authority(directory)


@pytest.fixture(scope="module")
def another(directory):
    return Authority(directory, "another authority")


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


@pytest.fixture
def both(instance, authority, info):
    """Make two linked instances, each with a certificate of its own."""

    def make(*, near=None, far=None, **properties):
        near_end = instance(1, **(authority.issue() | properties | (near or {})))
        far_end = instance(2, **(authority.issue() | properties | (far or {})))
        assert far_end.link_clusters([info(near_end)]) == OK
        return near_end, far_end

    return make


@MODES
@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_transfers_of_every_kind(both, blocks, backend, mode):
    near, far = both(transfer_backend=backend, **mode)
    cache, memory = blocks(near, 1)
    own, mine = blocks(far, 2)
    far.cache_manager.pull_blocks(BlocksCacheKey(1), own, [0, 3], [5, 0])
    assert (mine[:, [5, 0]] == 1).all()
    assert (mine[:, 1:5] == 2).all()
    far.cache_manager.push_blocks(BlocksCacheKey(1), own, [2], [7])
    assert (memory[:, 7] == 2).all()
    near.cache_manager.pull_blocks(BlocksCacheKey(2), cache, EVERY, EVERY)
    assert (memory[:, 1:5] == 2).all()
    memory[:] = 3
    config = TransferConfig(2, [tensor.ctypes.data for tensor in mine])
    task = near.cache_manager.transfer_cache_async(cache, Ready(), [config], EVERY, EVERY)
    assert task.synchronize(5000) is S.LLM_SUCCESS
    assert (mine == 3).all()
    near.check_link_status(2)
    far.check_link_status(1)


@MODES
def test_layer_by_layer_by_key(both, blocks, mode):
    near, far = both(transfer_backend="tcp", enable_remote_cache_accessible=True, **mode)
    cache, _ = blocks(near, 4)
    _, mine = blocks(far, 5)
    config = TransferWithCacheKeyConfig(BlocksCacheKey(2), range(1), range(1))
    task = near.cache_manager.transfer_cache_async(cache, Ready(), [config], EVERY, EVERY)
    assert task.synchronize(5000) is S.LLM_SUCCESS
    assert (mine == 4).all()


@pytest.mark.parametrize(
    ("near", "far", "encrypted"),
    [
        ({}, {}, "control connection"),
        ({"tls_lanes": True}, {}, "control connection and lanes"),
        ({}, {"tls_lanes": True}, "control connection and lanes"),
    ],
    ids=str,
)
def test_either_end_may_want_encrypted_lanes(both, near, far, encrypted):
    for side, other in zip(both(near=near, far=far), (2, 1), strict=True):
        assert side.describe_link(other)["encrypted"] == encrypted


def test_without_tls_nothing_is(pair):
    near, _ = pair
    assert near.describe_link(2)["encrypted"] == "nothing"


@MODES
def test_an_instance_links_to_itself(instance, authority, info, mode):
    one = instance(1, **authority.issue(), **mode)
    assert one.link_clusters([info(one)]) == OK
    one.check_link_status(1)


@MODES
def test_links_end_and_come_again(both, info, blocks, mode):
    near, far = both(transfer_backend="tcp", **mode)
    blocks(near, 1)
    cache, memory = blocks(far, 0)
    for block in range(4):
        far.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [block])
        assert (memory[:, block] == 1).all()
        assert (far if block % 2 else near).unlink_clusters([info(cluster_id=2 - block % 2)]) == OK
        assert near.link_clusters([info(far)]) == OK


@pytest.mark.expects_log("link to cluster 9 at .* lost")
@MODES
def test_a_peer_that_dies_is_noticed(instance, authority, info, remote, mode):
    far = remote(**authority.issue(), transfer_backend="tcp", **mode)
    near = instance(1, **authority.issue(), transfer_backend="tcp", **mode)
    assert near.link_clusters([info(far)]) == OK
    far.kill()
    deadline = time.monotonic() + 5
    while near._engine.links.links():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@MODES
def test_rank_table_links(instance, authority, blocks, mode):
    with socket.create_server(("127.0.0.1", 0)) as free:
        base = free.getsockname()[1] % 20_000 + 12_000  # below the ports of outgoing connections
    devices = [{"device_id": f"{i}", "device_ip": "", "rank_id": f"{i}"} for i in range(2)]
    table = {
        "version": "1.2",
        "status": "completed",
        "server_count": "1",
        "server_list": [{"server_id": "127.0.0.1", "device": devices}],
    }
    properties = {"link_base_port": base, "listen": None, "transfer_backend": "tcp"} | mode
    sides = [instance(number, **authority.issue(), **properties) for number in (1, 2)]
    ids = [side.link("domain", {1: 0, 2: 1}, json.dumps(table)) for side in sides]
    deadline = time.monotonic() + 10
    for side, comm_id in zip(sides, ids, strict=True):
        while side.query_register_mem_status(comm_id) is RegisterMemStatus.PREPARING:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert side.query_register_mem_status(comm_id) is RegisterMemStatus.OK
    blocks(sides[0], 1)
    cache, memory = blocks(sides[1], 2)
    sides[1].cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    assert (memory[:, 0] == 1).all()


PLAIN = "plain"
CASES = {
    "dialer without TLS": (None, PLAIN, ["inside TLS only", "llm.TlsCert"], []),
    "acceptor without TLS": (PLAIN, None, ["TLS", "llm.TlsCert"], ["this instance has none"]),
    "dialer of another authority": (
        None,
        "another",
        ["the peer's certificate is refused by this end"],
        ["the peer refuses this instance's certificate"],
    ),
    "dialer's certificate has expired": (
        None,
        "expired",
        ["the peer refuses this instance's certificate", "expired"],
        ["the peer's certificate is refused by this end", "has expired"],
    ),
    "acceptor's certificate has expired": (
        "expired",
        None,
        ["the peer's certificate is refused by this end", "has expired"],
        ["the peer refuses this instance's certificate", "expired"],
    ),
    "dialer's certificate is of another authority": (
        None,
        "foreign",
        ["the peer refuses this instance's certificate", "unknown ca"],
        ["the peer's certificate is refused by this end"],
    ),
}


def closed(caplog):
    """Return what the accepting end says about connections that it closed."""
    texts = [record.getMessage() for record in caplog.records]
    return "\n".join(text for text in texts if text.startswith("connection from "))


@CLOSED
@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_refusals(instance, authority, another, info, failure, caplog, case, lanes):
    near_has, far_has, of_dialer, of_acceptor = CASES[case]
    caplog.set_level("INFO")

    def properties(what):
        made = {
            None: authority.issue,
            PLAIN: dict,
            "another": another.issue,
            "expired": lambda: authority.issue(days=EXPIRED),
            # trusts the peer, and is not trusted
            "foreign": lambda: another.issue() | {"tls_ca": authority.ca},
        }[what]()
        return made | ({"tls_lanes": True} if lanes and what != PLAIN else {})

    near, far = instance(1, **properties(near_has)), instance(2, **properties(far_has))
    began = time.monotonic()
    assert far.link_clusters([info(near)], 3000) == REFUSED
    assert time.monotonic() - began < 2
    told = "\n".join(r.getMessage() for r in caplog.records if "link_clusters: " in r.getMessage())
    for words in of_dialer:
        assert words in told, told
    while not all(words in closed(caplog) for words in of_acceptor):  # it lets the dialer go first
        assert time.monotonic() - began < 5, closed(caplog)
        time.sleep(0.01)
    for side, other in ((near, 2), (far, 1)):
        assert failure(side.describe_link, other).status_code is S.LLM_NOT_YET_LINK


@CLOSED
def test_a_refused_peer_disturbs_nobody(both, instance, another, info, blocks):
    near, far = both(transfer_backend="tcp", tls_lanes=True)
    for properties in ({}, another.issue()):
        assert instance(3, **properties).link_clusters([info(near)]) == REFUSED
    blocks(near, 1)
    cache, memory = blocks(far, 2)
    far.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    assert (memory[:, 0] == 1).all()


@CLOSED
@pytest.mark.parametrize("secrets", [("a", "b"), ("a", None), (None, "b")])
def test_a_secret_counts_inside_tls_as_well(instance, authority, info, secrets):
    near, far = (
        instance(number, **authority.issue(), **({"link_secret": secret} if secret else {}))
        for number, secret in zip((1, 2), secrets, strict=True)
    )
    assert far.link_clusters([info(near)]) == REFUSED


def test_no_warning_beyond_loopback(instance, authority):
    instance(1, **authority.issue(), listen="0.0.0.0:0")


@pytest.mark.expects_log("without a secret")
def test_a_warning_beyond_loopback_without_tls_and_secret(instance, caplog):
    instance(1, listen="0.0.0.0:0")
    assert sum("without a secret" in r.getMessage() for r in caplog.records) == 1


def test_tls_1_3_is_spoken(both):
    near, _ = both()
    (link,) = near._engine.links.links()
    assert link.conversation.connection._session.version == "TLSv1.3"
