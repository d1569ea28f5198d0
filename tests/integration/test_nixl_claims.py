"""What a peer claims of its NIXL is looked at before it is believed."""

import msgspec
import pytest

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.host import HostBackend
from llm_datadist._backends.nixl.backend import NixlBackend
from support.instances import finalize, linked_sides
from support.nixl_backends import NEEDS_NIXL

BIG = {"tensors": 2, "units": 64, "words": 2048}  # 2 MiB: more than what goes over lanes
EVERY = list(range(64))

pytestmark = NEEDS_NIXL


@pytest.fixture
def rdma(monkeypatch):
    """Two hosts that seem to have an RDMA device."""

    def connect(self, peer, lanes):
        raise Unavailable("the peer runs on another host")

    monkeypatch.setattr(HostBackend, "connect", connect)
    for module in ("_backends.select", "_backends.nixl.backend", "_engine.link.delegate"):
        monkeypatch.setattr(f"llm_datadist.{module}.has_rdma", lambda: True)


@pytest.mark.expects_log("slower than it could")
@pytest.mark.usefixtures("rdma")
@pytest.mark.parametrize(
    ("at", "value"),
    [(8, 20_000_000), (8, -1), (4, 2**64 - 1), (5, (2**40, 1)), (0, "another"), (6, None)],
)
def test_a_link_with_odd_claims_goes_over_lanes(monkeypatch, at, value):
    describe = NixlBackend.describe

    def odd(self, link_id):
        fields = msgspec.msgpack.decode(describe(self, link_id))
        fields[at] = value
        return msgspec.msgpack.encode(fields)

    monkeypatch.setattr(NixlBackend, "describe", odd)
    sides = linked_sides("auto", 2)
    try:
        owner, user = sides
        found = user.instance.describe_link(1)
        assert found["backend"]["host"] == "tcp"
        assert "the peer's" in found["why"]["nixl"]
        source, target = owner.blocks(seed=3, key=0, **BIG), user.blocks(**BIG)
        user.manager.pull_blocks(owner.blocks_key(), target.cache, EVERY, EVERY)
        assert (target.data == source.data).all()
    finally:
        finalize(*sides)
