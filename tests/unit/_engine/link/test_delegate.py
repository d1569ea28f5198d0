"""Data planes of links that are made and ended, without a peer."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from llm_datadist import LLMException
from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.node import Node
from llm_datadist._backends.tcp import TcpBackend
from llm_datadist._engine.link import delegate
from llm_datadist._engine.link.delegate import DataPlanes, Endpoint
from llm_datadist._engine.link.messages import Marked
from llm_datadist._errors import LLMStatusCode
from llm_datadist._options.settings import Config
from llm_datadist._plan import Plan

LINK_ID = 5
MARKS = [Marked((3, 31), ((0x1000, 64),))]
PEER = SimpleNamespace(cluster_id=2, incarnation=7, page_proof=bytes(16), most_lanes=4)


class Backend:
    """A data path that connects unless it has a reason not to, and moves nothing."""

    reaches_devices = False

    def __init__(self, name, why_not="", placements=("host",)):
        self.name, self.why_not = name, why_not
        self.capabilities = SimpleNamespace(placements=placements)
        self.innermost = self
        self.is_closed = False

    def describe(self, link_id=0):
        return f"{self.name} of link {link_id}".encode()

    def connect(self, peer, lanes):
        if self.why_not:
            raise Unavailable(self.why_not)
        self.peer = peer
        return self

    connect_device = connect

    def close(self):
        self.is_closed = True


class End:
    """One end of a link: a node, and the data planes of its links."""

    def __init__(self, *backends, missing=(), **options):
        self.node = Node(1)
        self.planes = DataPlanes(Config(**options), self.node, list(backends), dict(missing))
        self.ended = []
        links = SimpleNamespace(repair_lanes=lambda link_id: None)
        self.planes.attach(links, lambda: MARKS, self.ended.append)

    def is_open(self, guard):
        return self.node.guard(guard[0]) == guard[1]

    def offer(self):
        return msgspec.msgpack.decode(self.planes.endpoint(LINK_ID), type=Endpoint)

    def connect(self, endpoint):
        return self.planes.connect(PEER, LINK_ID, endpoint, [], [])

    def connect_to(self, **offered):
        """Make the data plane of a link to a peer that offers lanes."""
        offer = Endpoint((9, 91), offered.pop("backends", {"tcp": b"lanes"}), **offered)
        return self.connect(msgspec.msgpack.encode(offer))


@pytest.fixture
def make_end():
    made = []

    def make(*backends, **named):
        made.append(End(*backends, **named))
        return made[-1]

    yield make
    for end in made:
        end.node.close()
        end.node.release()


def test_an_endpoint_has_the_marks_and_a_guard_of_the_link(make_end):
    end = make_end(TcpBackend())
    offer = end.offer()
    assert end.is_open(offer.link_ref)
    assert list(offer.marks) == MARKS
    assert list(offer.backends) == ["tcp"]


def test_a_new_link_knows_the_marks_of_its_peer(make_end):
    end = make_end(TcpBackend())
    data = end.connect(end.planes.endpoint(LINK_ID))
    plan = Plan(np.array((0x1000, 0x1000, 1), np.uint64), 1)
    assert data.marks.touched((3, 31), plan) == [(0x1000, 64)]
    assert data.marks.touched((3, 33), plan) == []
    end.planes.disconnect(data)


def test_a_link_that_ends_closes_its_guard(make_end):
    end = make_end(TcpBackend())
    guard = end.offer().link_ref
    endpoint = end.planes.endpoint(LINK_ID + 1)
    data = end.connect(endpoint)
    assert data.own_link_ref == guard
    assert end.is_open(guard)
    end.planes.disconnect(data)
    assert not end.is_open(guard)
    assert end.ended == [LINK_ID]


@pytest.mark.parametrize("endpoint", ["of no backend", "malformed"])
def test_a_link_that_cannot_be_made_leaves_no_guard(make_end, endpoint):
    end = make_end(TcpBackend())
    guard = end.offer().link_ref
    data = make_end().planes.endpoint(LINK_ID) if endpoint == "of no backend" else b"\xff"
    with pytest.raises(LLMException, match="no data path to the peer") as raised:
        end.connect(data)
    assert raised.value.status_code is LLMStatusCode.LLM_LINK_FAILED
    assert not end.is_open(guard)


def test_the_guard_of_a_link_that_never_comes_is_closed_later(make_end, monkeypatch):
    end = make_end(TcpBackend())
    guard = end.offer().link_ref
    monkeypatch.setattr("llm_datadist._engine.link.delegate._OFFER_S", -1.0)
    end.planes.endpoint(LINK_ID + 1)
    assert not end.is_open(guard)


def test_a_plane_uses_the_best_backend_that_serves_the_pair(make_end):
    host, tcp = Backend("host", "another host"), Backend("tcp")
    data = make_end(host, tcp).connect_to()
    assert data.channel is tcp
    assert data.reasons == {"host": "another host"}
    assert (tcp.peer.cluster_id, tcp.peer.link_ref) == (2, (9, 91))
    assert (tcp.peer.page_proof, tcp.peer.metadata) == (bytes(16), {"tcp": b"lanes"})
    assert data.device_channel is None
    with pytest.raises(LLMException, match="host: another host; tcp: no lanes"):
        make_end(host, Backend("tcp", "no lanes")).connect_to()


def test_device_memory_takes_a_channel_that_reaches_it(make_end):
    nixl = Backend("nixl", placements=("host", "device"))
    assert make_end(Backend("tcp"), nixl).connect_to().device_channel is nixl
    nixl.why_not = "no driver"
    plane = make_end(Backend("tcp"), nixl).connect_to()
    assert (plane.path, plane.device_path) == ("tcp", "tcp")
    assert plane.describe()["why_device"] == "nixl: no driver"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.expects_log("slower than it could: memory of GPUs goes over the lanes: cuda: no IPC")
def test_gpus_of_one_host_that_cannot_be_mapped(make_end, strict):
    host = Backend("host")
    cuda = Backend("cuda", "no IPC", placements=("device",))
    end = make_end(host, cuda, strict_backend=strict, device="cuda")
    offers = {"host": b"", "cuda": b""}
    if strict:
        with pytest.raises(LLMException, match="cuda: no IPC; strict_backend is on"):
            end.connect_to(backends=offers)
        assert host.is_closed
    else:
        assert end.connect_to(backends=offers).device_path == "tcp"


def test_a_peer_with_a_gpu_is_reached_over_lanes(make_end):
    end = make_end(Backend("host"))
    plane = end.connect_to(backends={"host": b"", "cuda": b""})
    assert plane.device_path == "tcp"
    assert "cuda" in plane.describe()["why_device"]
    assert end.connect_to(backends={"host": b""}).device_path == "none"


@pytest.mark.expects_log("transfers with cluster 2 are not checked")
def test_checksums_need_a_peer_that_can_compute_them(make_end):
    end = make_end(Backend("tcp"), checksum="crc32c")
    assert end.connect_to(features=("crc32c", "later")).checked
    assert end.connect_to().checksum == "off: the peer does not know crc32c"


def test_notices_of_transfers_need_a_peer_that_takes_them(make_end):
    end = make_end(Backend("tcp"))
    assert end.connect_to(features=end.offer().features).takes_ended
    assert not end.connect_to(features=("crc32c",)).takes_ended


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.expects_log("slower than it could: both hosts have an RDMA device")
def test_a_pair_with_rdma_that_does_not_use_it(make_end, monkeypatch, strict):
    monkeypatch.setattr(delegate, "has_rdma", lambda: True)
    tcp = Backend("tcp")
    end = make_end(tcp, missing={"nixl": "not installed"}, strict_backend=strict)
    assert end.offer().rdma
    if strict:
        with pytest.raises(LLMException, match="NIXL cannot be used: not installed"):
            end.connect_to(rdma=True)
        assert tcp.is_closed
    else:
        assert end.connect_to(rdma=True).reasons == {"nixl": "not installed"}
    assert end.connect_to(rdma=False).channel is tcp
