"""What a peer tells of its NIXL: anything is read, or is a reason not to use NIXL."""

import msgspec
import pytest

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.nixl.metadata import NixlMetadata, agent_name, read_metadata

INCARNATION = 0x0123456789ABCDEF
GOOD = {
    "agent": agent_name(INCARNATION),
    "engine": "UCX",
    "connection": b"connection",
    "rdma": False,
    "log_address": 4096,
    "log_ref": (3, 5),
    "log_salt": bytes(16),
    "landing_address": 8192,
    "landing_slots": 2,
    "landing_metadata": b"landing",
}
WRONG_TYPES = [None, 1.5, float("nan"), float("inf"), -1, 2**64 - 1, [], {}, [1, 2, 3], "x" * 70000]
ODD = {
    "agent": [
        "",
        "x" * 65,
        "llm-datadist-",
        "llm-datadist-0123456789abcdf0-00000000",
        b"name",
        True,
    ],
    "engine": ["", "x" * 33, "LIBFABRIC", b"UCX", True],
    "connection": ["text", bytes((16 << 10) + 1), True],
    "rdma": [0, 1, "yes", b""],
    "log_address": [2**63, "1", b"1", True],
    "log_ref": [(-1, 0), (2**32, 0), (0, -1), (0, 1.5), (0,), (0, 0, 0), "ab", (None, None)],
    "log_salt": [b"", bytes(15), bytes(17), "x" * 16],
    "landing_address": [2**63, "1", b"1", True],
    "landing_slots": [3, 64, 20_000_000, 2**63, "2", True],
    "landing_metadata": ["text", bytes((16 << 10) + 1), True],
}
CASES = [(name, value) for name in ODD for value in ODD[name] + WRONG_TYPES]


def read(fields):
    return read_metadata(msgspec.msgpack.encode(list(fields.values())), INCARNATION, "UCX")


def test_the_fields_are_all_of_them():
    assert tuple(GOOD) == NixlMetadata.__struct_fields__ == tuple(ODD)
    assert msgspec.structs.asdict(read(GOOD)) == GOOD


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda each: f"{each!r:.20}")
def test_odd_values_make_nixl_unavailable(name, value):
    with pytest.raises(Unavailable, match=r"cannot be read|engine is|name of another"):
        read(GOOD | {name: value})


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 60_000, b"\xa4\xff\xff\xff\xff", b"\x90"])
def test_bytes_that_are_no_description(data):
    with pytest.raises(Unavailable, match="cannot be read"):
        read_metadata(data, INCARNATION, "UCX")


def test_a_peer_without_it():
    with pytest.raises(Unavailable, match="does not offer"):
        read_metadata(None, INCARNATION, "UCX")
