"""The data plane of a link: which channel moves what, what is counted, how lookups read."""

from types import SimpleNamespace

import pytest

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.link.data_plane import DataPlane, LookupFailedError

PEER = SimpleNamespace(cluster_id=2, link_ref=(4, 41))


class Channel:
    """A channel that moves nothing; `ended` remembers in which order things were closed."""

    trouble = "the engine has failed"

    def __init__(self, name, ended):
        self.name = name
        self.ended = ended
        self.innermost = self

    def run(self, transfer):
        return Outcome(Code.OK, moved_bytes=len(self.name))

    def gathers(self, remote):
        return len(remote) > 0

    def describe(self):
        return {"path": self.name}

    def close(self):
        self.ended.append(self.name)


class Lanes:
    """Lanes whose peer answers with `outcome`."""

    count = 2

    def __init__(self, ended):
        self.ended = ended
        self.outcome = Outcome(Code.OK)

    def version(self, deadline_ns):
        return self.outcome, 8 << 40

    def read_log(self, offset, size, deadline_ns):
        return self.outcome, b""

    def end(self):
        self.ended.append("lanes end")

    def close(self):
        self.ended.append("lanes closed")


def a_plane(*, device=True, keep=False, checksum="off", reasons=None, gathers=False):
    ended = []
    channel = Channel("tcp", ended)
    made = DataPlane(
        PEER,
        Lanes(ended),
        channel,
        reasons or {},
        (3, 31),
        device_channel={True: Channel("nixl", ended), None: channel}.get(device),
        why_device="there is no GPU",
        checksum=checksum,
        gathers=gathers,
        keep_directory=keep,
    )
    return made, ended


def test_memory_goes_over_the_channel_that_reaches_it():
    plane, _ = a_plane()
    assert plane.run(SimpleNamespace(on_device=False)).moved_bytes == len("tcp")
    assert plane.run(SimpleNamespace(on_device=True)).moved_bytes == len("nixl")
    assert (plane.path, plane.device_path) == ("tcp", "nixl")
    assert plane.device_trouble == "the engine has failed"
    plane, _ = a_plane(device=False)
    assert plane.run(SimpleNamespace(on_device=True)).code == Code.NO_PATH
    assert plane.device_path == "none"
    assert plane.device_trouble == "there is no GPU"


def test_the_peer_gathers_if_it_can_and_there_are_lanes():
    plane, _ = a_plane(gathers=True)
    assert plane.gathers([8])
    assert not plane.gathers([])
    plane.lanes.count = 0
    assert not plane.gathers([8])
    plane, _ = a_plane()
    assert not plane.gathers([8]), "to a peer that does not know it, the request is malformed"


@pytest.mark.parametrize(
    ("device", "channels"), [(True, ["tcp", "nixl"]), (None, ["tcp"]), (False, ["tcp"])]
)
def test_transfers_end_before_the_lanes_are_closed(device, channels):
    plane, ended = a_plane(device=device)
    assert [channel.name for channel in plane.channels()] == channels
    plane.close()
    assert ended == ["lanes end", *channels, "lanes closed"]


def test_over_lanes_a_transfer_carries_the_version():
    plane, _ = a_plane()
    assert not plane.published
    assert plane.required_version() == 0
    plane.directory.refresh("pull_blocks", 0)
    assert plane.required_version() == 8 << 40
    plane, _ = a_plane(keep=True)
    plane.directory.refresh("pull_blocks", 0)
    assert plane.required_version() == 0
    assert plane.peer_end_is_open()


def test_a_directory_that_cannot_be_read_says_why():
    plane, _ = a_plane()
    plane.lanes.outcome = Outcome(Code.PEER_DEAD)
    with pytest.raises(LookupFailedError, match="PEER_DEAD") as raised:
        plane.directory.refresh("pull_blocks", 0)
    assert raised.value.outcome is plane.lanes.outcome


def test_what_describe_link_shows():
    plane, _ = a_plane(checksum="crc32c")
    assert plane.checked
    plane.count(10, write=False)
    plane.count(7, write=True)
    plane.failures += 1
    described = plane.describe()
    assert described["backend"] == {"host": "tcp", "device": "nixl"}
    assert described["why"] == {"tcp": "the best path that both sides have"}
    assert described["counters"] == {
        "pulls": 1,
        "pulled_bytes": 10,
        "pushes": 1,
        "pushed_bytes": 7,
        "failures": 1,
        "checksum_mismatches": 0,
        "lost_request_notices": 0,
    }
    plane, _ = a_plane(checksum="off: the peer does not know crc32c", reasons={"host": "too far"})
    assert not plane.checked
    assert plane.describe()["why"] == {"host": "too far"}
