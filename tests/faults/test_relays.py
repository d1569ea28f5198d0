"""One who was dialed, or is on the path, and passes proofs on to an instance that has the secret.

They do not know the secret. An attacker between two honest ends stays there as long as it passes
everything on, reads KV caches on plain lanes, and gets nothing else.
"""

from __future__ import annotations

import struct
import time

import pytest

from llm_datadist._protocol.codec import Kind
from support.framing import Tags, header_of
from support.proxy import Proxy
from support.rig import EVERY, forget
from support.station import OK, Station, digest, pattern

OPTIONS = {"link_secret": "correct horse battery staple", "blocks": 16, "words": 2048}
ANY_ENTRY = 0xFFFFFFFF
READ = 1

pytestmark = [pytest.mark.slow, pytest.mark.expects_log("connection from .* closed", "lost")]


@pytest.fixture
def stations(caplog):
    """Make stations that are closed with the test."""
    made = []

    def make(cluster_id, listen="127.0.0.1:0", **options):
        made.append(Station(cluster_id, listen, **OPTIONS | options))
        return made[-1]

    yield make
    for each in reversed(made):
        each.close()
    forget(caplog)


def read_request(address, size):
    """A READ of accessible memory, as it would be answered, without its tag."""
    body = struct.pack("<9QII", 0, 10**10, 0, ANY_ENTRY, 0, 0, 0, 0, 0, 1, 0)
    body += struct.pack("<2Q", address, size)
    return header_of(READ, len(body)) + body


@pytest.mark.expects_log("link_clusters", "refused")
def test_a_victim_is_not_linked_to_itself_by_one_that_it_dials(stations):
    victim = stations(1)
    with Proxy(victim.listen_address()) as attacker:
        assert victim.call("link", attacker.address).status == "LLM_LINK_FAILED"
    assert victim.call("describe", 1).status == "LLM_NOT_YET_LINK"
    assert victim.call("link", victim.listen_address()).status == OK  # which may be wanted
    assert victim.call("pull", 1, [0], [1]).status == OK


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.expects_log("malformed frames")
def test_what_one_on_the_path_injects_reads_nothing(stations, numbered):
    """On each lane; also with a request that has the right number, which can be counted."""
    victim, other = (stations(each, transfer_backend="tcp") for each in (1, 2))
    victim.fill(1)
    other.fill(2)
    with Proxy(other.listen_address()) as attacker:
        assert victim.call("link", attacker.address).status == OK
        lanes = attacker.open_connections(Kind.LANE)
        request = read_request(other.data.ctypes.data, 4096)
        attacker.record()
        for lane in lanes:
            tags = Tags(bytes(16))
            tags.count = 0 if numbered else 77
            lane.inject(tags.seal(request))
        time.sleep(0.3)
        told = [data for kind, _, data in attacker.recorded if kind is Kind.LANE]
        assert other.data.tobytes()[:4096] not in b"".join(told)
        assert sum(map(len, told)) < 4096
        deadline = time.monotonic() + 5
        while victim.call("pull", 2, EVERY, EVERY).status != OK:  # over new lanes
            assert time.monotonic() < deadline
        assert digest(victim.data) == digest(pattern(2, 16, 2048))
