"""Peers that have proved themselves, or need not, and break the protocol all the same.

Strangers are in test_hostile.py. Here, too, only the misbehaving peer loses anything.
"""

import contextlib
import os
import re
import resource
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from llm_datadist._backends.host import HostMetadata, boot_id, pid_namespace
from llm_datadist._engine.link.delegate import Endpoint
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.messages import Notify, Ping, Pong, Reject, Reply, Request
from llm_datadist._registry.records import Added, encode_frame
from support.framing import header_of
from support.intruder import Intruder, is_closed
from support.rig import EVERY, forget
from support.station import OK, Station, digest, pattern

SECRET = "correct horse battery staple"
OPTIONS = {"link_secret": SECRET, "blocks": 16, "words": 2048, "sync_kv_timeout": 1000}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_log("connection from .* closed", "lost", "refused", "message of cluster"),
]


@pytest.fixture
def served(caplog):
    """An instance with a link; that one works afterwards, and so does a new one."""
    remote, local, late = (
        Station(n, listen, **OPTIONS) for n, listen in [(1, "127.0.0.1:0"), (2, None), (3, None)]
    )
    assert local.call("link", remote.listen_address()).status == OK
    remote.fill(1)
    yield remote
    for each in (local, late):
        assert each.call("link", remote.listen_address()).status == OK
        assert each.call("pull", 1, EVERY, EVERY).status == OK
        assert digest(each.data) == digest(pattern(1, 16, 2048))
    for each in (late, local, remote):
        each.close()
    forget(caplog)


@pytest.fixture
def intruder(served):
    with Intruder(served.listen_address(), SECRET.encode()) as made:
        yield made


def packed(value):
    return msgspec.msgpack.encode(value)


def host_endpoint(**changes):
    """Return what an instance on this host would say about its memory, with changes."""
    honest = {
        "boot_id": boot_id(),
        "pid_namespace": pid_namespace(),
        "pid": os.getpid(),
        "page_address": 1 << 40,
        "published_fd": 0,
        "published_bytes": 4096,
        "segments": (),
    }
    told = tuple((honest | changes).values())
    assert list(honest) == list(HostMetadata.__struct_fields__)
    return packed(((1, 1), {"host": packed(told)}))


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x92\x92\x00\x01\x81\xa1\xff\xc4\x00", id="no UTF-8"),
        pytest.param(b"\x93\x92\x00\x01\x80" + b"\x91" * 20_000, id="nested"),
        pytest.param(packed(((-1, 1), {})), id="negative guard"),
        pytest.param(packed(Endpoint((1, 1), {})), id="no backend"),
        pytest.param(host_endpoint(pid=-1), id="no process"),
        pytest.param(host_endpoint(pid=2**40), id="wide pid"),
        pytest.param(host_endpoint(published_fd=-1), id="no file"),
        pytest.param(host_endpoint(published_bytes=2**63), id="file of 2^63 bytes"),
        pytest.param(host_endpoint(page_address=-1), id="no address"),
    ],
)
def test_a_hostile_endpoint_makes_no_link_and_leaves_nothing(served, intruder, endpoint):
    fds = served.fds()
    intruder.complete(endpoint)
    refusal = intruder.hear()
    assert isinstance(refusal, Reject)
    assert served.call("describe", 66).status == "LLM_NOT_YET_LINK"
    own = 3  # the intruder's, in this process
    intruder.close()
    deadline = time.monotonic() + 3
    while served.fds() > fds - own + 2:
        assert time.monotonic() < deadline, "descriptors were left behind"
        time.sleep(0.01)


def test_a_published_page_that_is_a_pipe_holds_nobody(served, intruder):
    """Opening a pipe without a writer would wait for ever. It is a pipe of another process."""
    reader, writer = os.pipe()
    os.close(writer)
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[reader]) as owner:
        try:
            began = time.monotonic()
            intruder.complete(host_endpoint(pid=owner.pid, published_fd=reader))
            refusal = intruder.hear()
            assert time.monotonic() - began < 2
            assert isinstance(refusal, Reject)
            assert f"/proc/{owner.pid}/fd/{reader} is no sealed memory file" in refusal.reason
        finally:
            owner.kill()
    os.close(reader)


def test_the_key_of_another_link_opens_no_lane(served, intruder):
    """Two links of one client: the key of one does not prove the other's lanes."""
    intruder.accepted()
    with Intruder(served.listen_address(), SECRET.encode(), cluster_id=67) as other:
        other.link()
        sock = other.open_lane(Side.ACCEPTOR, session=intruder.accept.session)
        assert is_closed(sock)
        other.say(Ping(id=1))
        assert other.hear() == Pong(id=1)


U64 = 2**64 - 1


@pytest.mark.parametrize("kind", [Request, Notify])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff" * 100, id="garbage"),
        pytest.param(b"\x91" * 5000, id="nested"),
        pytest.param(packed(("x", 1)), id="unknown"),
        pytest.param(packed(("remapped", ((-1, -1),))), id="negative"),
        pytest.param(packed(("remapped", ((1, 1),) * 1025)), id="too many ranges"),
        pytest.param(packed(("lend", 1, (1, 2, 3, 4), None, 5)), id="no such key"),
        pytest.param(packed(("lend", -1, (1,), None, 5)), id="negative lease"),
        pytest.param(packed(("lend", 1, (1, U64), None, 5)), id="wide key"),
        pytest.param(packed(("lend", 1, (1,), None, 1 << 32)), id="wide time"),
        pytest.param(packed(("renew", 1, 0)), id="no time"),
        pytest.param(packed(("faulted", (1, 1), ((1, 1),) * 1025)), id="too many faults"),
        pytest.param(packed(("marked", (1, 1), ((-1, 1),))), id="negative mark"),
        pytest.param(packed(("release", "1")), id="no number"),
    ],
)
def test_a_message_that_no_peer_can_say_ends_its_link_and_no_other(served, intruder, kind, body):
    intruder.link()
    fields = {"id": 7} if kind is Request else {}
    intruder.say(kind(**fields, body=body))
    assert is_closed(intruder.sock)
    eventually_unlinked(served, 66)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Request, ("remapped", ((1, 1),))),
        (Request, ("lend", 1, (1,), None, 5)),
        (Request, ("renew", 1, 5)),
        (Notify, ("faulted", (1, 1), ((1, 1),))),
        (Notify, ("marked", (1, 1), ((1, 1),))),
        (Notify, ("release", 1)),
    ],
)
def test_what_those_messages_spoil_is_taken(served, intruder, kind, body):
    intruder.link()
    fields = {"id": 7} if kind is Request else {}
    intruder.say(kind(**fields, body=packed(body)))
    intruder.say(Ping(id=1))
    answers = {type(intruder.hear()) for _ in range(2 if kind is Request else 1)}
    assert answers == ({Reply, Pong} if kind is Request else {Pong})
    assert served.call("describe", 66).status == OK


def eventually_unlinked(station, cluster_id):
    deadline = time.monotonic() + 3
    while station.call("describe", cluster_id).status != "LLM_NOT_YET_LINK":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    "message",
    [Ping(id=1), Request(id=1, body=packed(("remapped", ())))],
    ids=["pings", "requests"],
)
def test_a_flood_whose_answers_nobody_reads_is_held_back(served, intruder, message):
    """The flooder waits; the memory of the instance does not fill with answers."""
    intruder.link()
    intruder.sock.settimeout(1.0)
    before = resident_bytes()
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 << 20:
            flood = b"".join(intruder.frame(message) for _ in range(1024))
            intruder.sock.sendall(flood)
            sent += len(flood)
    assert sent < 64 << 20, "it was not held back"
    assert resident_bytes() - before < 24 << 20


class LyingTarget:
    """Serves the lanes on which an instance asks the intruder, with directories of its own."""

    OUTCOME = struct.Struct("<IiqQQ")

    def __init__(self, sock, version, log):
        self._sock = sock
        self._version = version
        self._log = log
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        try:
            while head := self._sock.recv(96, 256):  # MSG_WAITALL
                kind, sequence = head[5], int.from_bytes(head[12:16], "little")
                size = int.from_bytes(head[8:12], "little") - 80
                if size:
                    self._sock.recv(size, 256)
                self._answer(kind, sequence, int.from_bytes(head[80:88], "little"))
        except OSError:
            pass

    def _answer(self, kind, sequence, wanted):
        code, data = 0, b""
        if kind == 6:  # READ_LOG
            data = self._log[:wanted] if self._log is not None else bytes(wanted)
        elif kind in (1, 8, 9):  # what looks a key up
            code = 8  # STALE
        said = b""
        if data:
            said = header_of(16, len(data), sequence=sequence) + data
        value = self._version if kind == 5 else time.monotonic_ns()
        outcome = self.OUTCOME.pack(code, 0, -1, len(data), value)
        self._sock.sendall(said + header_of(17, len(outcome), sequence=sequence) + outcome)

    def close(self):
        self._thread.join(5)
        assert not self._thread.is_alive()


LIED = {"LLM_FAILED", "LLM_LINK_FAILED", "LLM_TIMEOUT", "LLM_KV_CACHE_NOT_EXIST"}


def one_record(body):
    return len(body).to_bytes(4, "little") + body


def one_cache(entry):
    return encode_frame(Added(1, entry, True, 1, (4, 4), 4, 1, 0, b"", False))


def version_of(log):
    return 2 << 40 | len(log)


@pytest.mark.parametrize(
    ("log", "version", "words"),
    [
        pytest.param(one_cache((1, 1)), None, "has no cache under", id="nothing wrong"),
        pytest.param(b"\xff" * 8, None, "record", id="garbage"),
        pytest.param(b"", 2 << 40 | 8, "0 bytes .* instead of 8", id="shorter than announced"),
        pytest.param(one_record(b"\x92\x02\x01"), None, "at least length 3", id="a short record"),
        pytest.param(one_cache((-1, -2)), None, r"\$\[2\]\[0\]", id="negative guard"),
        pytest.param(b"", 3 << 40, "rewriting|no result", id="rewritten for ever"),
        pytest.param(None, 2 << 40 | (1 << 40) - 1, "at most", id="a log without an end"),
    ],
)
def test_a_directory_that_lies_fails_the_call_in_time(served, intruder, log, version, words):
    intruder.link()
    (lane,) = intruder.lanes[Side.DIALER]
    lane.settimeout(None)
    target = LyingTarget(lane, version_of(log) if version is None else version, log)
    before = resident_bytes()
    answer = served.call("pull", 66, [0], [0])
    assert answer.status in LIED, answer
    assert re.search(words, answer.text), answer.text
    assert answer.seconds < 1.0 + 0.1 + 0.3
    assert resident_bytes() - before < 64 << 20
    served.unlink_forced(66)
    target.close()
