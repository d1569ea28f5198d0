"""Instances on different hosts, which share a kernel but no network device."""

import json

import pytest

from support.station import OK, TENSORS, digest, pattern

BLOCKS, WORDS = 16, 1024  # a station's own
EVERY = list(range(BLOCKS))
LAYER_COUNT = TENSORS // 2

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def linked(station, hosts, **options):
    """Return two stations on two hosts, the second linked to the first."""
    remote, local = station(hosts[0], 1, **options), station(hosts[1], 2, listen=False, **options)
    assert local.call("link", remote.address).status == OK
    return remote, local


def whole(seed):
    return digest(pattern(seed, BLOCKS, WORDS))


def test_link_local_addresses_keep_their_zone(network, station):
    """In parsing, listening, dialing from a source, and where each end says the other is."""
    hosts = network(2)
    remote, local = linked(station, hosts, ip="link-local", transfer_backend="tcp")
    assert remote.address[0] == "fe80::1%eth0"
    assert local.value("describe", 1)["peer"] == f"[fe80::1%eth0]:{remote.address[1]}"
    assert remote.value("describe", 2)["peer"].startswith("[fe80::2%eth0]:")


@pytest.mark.parametrize("ip", ["4", "6", "link-local"])
def test_pull_and_push_both_ways(network, station, ip):
    remote, local = linked(station, network(2), ip=ip, transfer_backend="tcp")
    for one, other in ((local, remote), (remote, local)):
        one.value("fill", 1)
        other.value("fill", 2)
        one.value("pull", other.cluster_id, EVERY[::-1], EVERY[::-1])
        assert one.value("digest") == whole(2)
        one.value("fill", 3)
        one.value("push", other.cluster_id, EVERY, EVERY)
        assert other.value("digest") == whole(3)
        described = one.value("describe", other.cluster_id)
        assert described["backend"] == {"host": "tcp", "device": "tcp"}
        assert described["counters"]["pulls"] == described["counters"]["pushes"] == 1


def test_bytes_travel_over_the_wire(network, station):
    """Lanes run between the hosts' addresses, and carry what is moved."""
    hosts = network(2)
    remote, local = linked(station, hosts, transfer_backend="tcp")
    before = local.value("received_bytes", "eth0")
    local.value("pull", 1, EVERY, EVERY)
    moved = TENSORS * BLOCKS * WORDS * 8
    assert local.value("received_bytes", "eth0") - before > moved
    assert local.value("describe", 1)["peer"] == f"{hosts[0].ip4}:{remote.address[1]}"


@pytest.mark.parametrize(("ip", "backend"), [("4", "auto"), ("4", "tcp"), ("6", "tcp")])
def test_layer_by_layer(network, station, ip, backend):
    remote, local = linked(station, network(2), ip=ip, transfer_backend=backend)
    local.value("fill", 4)
    addrs = remote.value("tensor_addrs")
    assert local.call("layerwise", 1, addrs, EVERY, EVERY).status == OK
    assert remote.value("digest") == whole(4)


def test_a_key_is_consumed(network, station):
    remote, local = linked(station, network(2), transfer_backend="tcp")
    remote.value("offer", 5, 6)
    local.value("take", 1, 5)
    assert local.value("digest") == whole(6)
    assert local.call("take", 1, 5).status == "LLM_KV_CACHE_NOT_EXIST"


def test_a_peer_that_leaves_and_comes_back(network, station):
    remote, local = linked(station, network(2), transfer_backend="tcp")
    local.value("unlink", 1)
    assert local.call("pull", 1, [0], [0]).status == "LLM_NOT_YET_LINK"
    local.value("link", remote.address)
    local.value("pull", 1, [0], [0])


def test_an_address_where_nobody_listens(network, station):
    hosts = network(3)
    local = station(hosts[0], 1)
    assert local.call("link", [hosts[1].ip4, 9]).status == "LLM_LINK_FAILED"
    hosts[2].down()
    answer = local.call("link", [hosts[2].ip4, 9], 300)
    assert answer.status in {"LLM_TIMEOUT", "LLM_LINK_FAILED"}
    assert answer.seconds < 1.3


def rank_table(hosts, ip):
    """Return a table of one server for each host, with one device."""
    servers = [
        {
            "server_id": f"server {rank}",
            "host_ip": host.ip4 if ip == "4" else host.ip6,
            "device": [{"device_id": "0", "device_ip": "", "rank_id": f"{rank}"}],
        }
        for rank, host in enumerate(hosts)
    ]
    return json.dumps({"version": "1.0", "status": "completed", "server_list": servers})


@pytest.mark.parametrize(("ip", "backend"), [("4", "auto"), ("6", "tcp")])
def test_rank_table_links(network, station, ip, backend):
    hosts = network(3)
    members = [
        station(host, 10 + rank, ip=ip, listen=False, transfer_backend=backend)
        for rank, host in enumerate(hosts)
    ]
    ranks = {member.cluster_id: rank for rank, member in enumerate(members)}
    for member in members:
        member.value("fill", member.cluster_id)
        member.send("join", "all", ranks, rank_table(hosts, ip))
    joined = [member.answer().value for member in members]
    assert joined == [[1, "OK"]] * 3
    for member in members:
        for other in members:
            if other is not member:
                member.value("pull", other.cluster_id, [0], [other.cluster_id - 9])
                described = pattern(other.cluster_id, BLOCKS, WORDS)[:, [0]]
                assert member.value("digest", [other.cluster_id - 9]) == digest(described)
    for member in members:
        member.value("leave", 1)


@pytest.mark.parametrize(("ip", "backend"), [("4", "auto"), ("6", "tcp")])
def test_switch_role(network, station, ip, backend):
    hosts = network(2)
    address = hosts[1].ip4 if ip == "4" else f"[{hosts[1].ip6}]"
    remote, local = linked(station, hosts, ip=ip, transfer_backend=backend)
    assert remote.call("switch_role", "DECODER").status == "LLM_EXIST_LINK"
    local.value("unlink", 1)
    remote.value("switch_role", "DECODER")
    assert remote.value("listen_address") is None
    assert local.call("link", remote.address).status == "LLM_LINK_FAILED"
    local.value("switch_role", "PROMPT", f"{address}:0")
    assert remote.call("link", local.value("listen_address")).status == OK
    local.value("fill", 5)
    remote.value("pull", 2, EVERY, EVERY)
    assert remote.value("digest") == whole(5)


@pytest.mark.parametrize("ip", ["4", "6"])
def test_a_mesh_of_prefill_and_decode(network, station, ip):
    """Each of 3 decoders links each of 3 prefillers; all pull, then all are pushed to, at once.

    The last turn pushes layer by layer.
    """
    hosts = network(6)
    prefill = [
        station(host, 1 + rank, ip=ip, transfer_backend="tcp")
        for rank, host in enumerate(hosts[:3])
    ]
    decode = [
        station(host, 11 + rank, ip=ip, listen=False, transfer_backend="tcp")
        for rank, host in enumerate(hosts[3:])
    ]
    for each in prefill + decode:
        each.value("fill", each.cluster_id)
    for decoder in decode:
        for prefiller in prefill:
            decoder.value("link", prefiller.address)
    for turn in range(3):
        for rank, decoder in enumerate(decode):
            peer = prefill[(rank + turn) % 3].cluster_id
            decoder.send("pull", peer, [0, 1, 2], [peer, peer + 3, peer + 6])
        assert [decoder.answer().status for decoder in decode] == [OK] * 3
    for decoder in decode:
        for peer in (1, 2, 3):
            got = decoder.value("digest", [peer, peer + 3, peer + 6])
            assert got == digest(pattern(peer, BLOCKS, WORDS)[:, :3])
    addrs = [decoder.value("tensor_addrs") for decoder in decode]
    for turn in range(3):
        for rank, prefiller in enumerate(prefill):
            peer = (rank + turn) % 3
            call = ("push", decode[peer].cluster_id)
            if turn == 2:
                call = ("layerwise", decode[peer].cluster_id, addrs[peer])
            prefiller.send(*call, [14, 15], [8 + 2 * rank, 9 + 2 * rank])
        assert [prefiller.answer().status for prefiller in prefill] == [OK] * 3
    for decoder in decode:
        for rank, prefiller in enumerate(prefill):
            got = decoder.value("digest", [8 + 2 * rank, 9 + 2 * rank])
            assert got == digest(pattern(prefiller.cluster_id, BLOCKS, WORDS)[:, [14, 15]])
