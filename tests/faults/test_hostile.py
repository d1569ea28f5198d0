"""Hostile clients at the port of a serving instance: they lose only their own connection.

What they say within the handshake is in tests/integration/links/test_hostile.py; here it is what it
does to links and transfers that there are, and what floods do.
"""

import contextlib
import secrets
import socket
import threading
import time

import pytest

from llm_datadist._control import listener
from llm_datadist._protocol.codec import (
    PREAMBLE_BYTES,
    Kind,
    encode_frame,
    encode_preamble,
)
from llm_datadist._protocol.control_tags import TAG_BYTES
from llm_datadist._protocol.handshake import fresh_nonce
from llm_datadist._protocol.lane_auth import (
    LANE_HELLO_BYTES,
    LANE_PROOF_BYTES,
)
from llm_datadist._protocol.messages import PROTOCOL_VERSION, Hello, Ping
from support.proxy import Proxy
from support.rig import EVERY, forget
from support.station import OK, Station, digest, pattern

CONTROL, LANE = encode_preamble(Kind.CONTROL), encode_preamble(Kind.LANE)
SECRET = "correct horse battery staple"
OPTIONS = {"transfer_backend": "tcp", "link_secret": SECRET, "blocks": 16, "words": 2048}
STATIONS = [(1, "127.0.0.1:0"), (2, None), (3, None)]
LANE_OPENING_BYTES = PREAMBLE_BYTES + LANE_HELLO_BYTES + LANE_PROOF_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.expects_log("connection from .* closed", "lost")]


@pytest.fixture
def served(caplog):
    """An instance with a secret and a link over lanes; that and a new one work afterwards."""
    remote, local, late = (Station(n, listen, **OPTIONS) for n, listen in STATIONS)
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


@contextlib.contextmanager
def connected(station, data=b""):
    with socket.create_connection(station.listen_address(), timeout=5) as sock:
        sock.sendall(data)
        yield sock


def is_closed(sock):
    """Wait until the peer has closed; what it says before is dropped."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True


def hello(**fields):
    given = {
        "version": PROTOCOL_VERSION,
        "cluster_id": 66,
        "incarnation": 66,
        "nonce": fresh_nonce(),
    }
    return encode_frame(Hello(**given | fields))


class Wiretap:
    """Between an instance and its peer: keeps what the dialer says on its lanes."""

    def __init__(self, target):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.heard = []
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            said = bytearray()
            self.heard.append(said)
            for ends in ((client, server, said), (server, client, bytearray())):
                self._threads.append(threading.Thread(target=self._pass, args=ends))
                self._threads[-1].start()

    @staticmethod
    def _pass(source, sink, record):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                record += data
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def lanes(self):
        """Return what opened each lane: preamble, hello, proof."""
        return [bytes(said[:LANE_OPENING_BYTES]) for said in self.heard if said[:8] == LANE]

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in self._sockets:
            sock.close()
        assert not any(thread.is_alive() for thread in self._threads)


def test_a_recorded_lane_opens_nothing(served):
    """An eavesdropper repeats what it has heard while the link is up, and when it is gone."""
    tap = Wiretap(served.listen_address())
    victim = Station(7, None, **OPTIONS)
    assert victim.call("link", tap.address).status == OK
    assert victim.call("pull", 1, [0], [0]).status == OK
    opened = served.describe(7)["lanes"]
    recorded = tap.lanes()
    assert len(recorded) == 2 * opened
    for when in ("up", "gone"):
        for lane in recorded:
            with connected(served, lane) as sock:
                assert is_closed(sock)
        if when == "up":
            assert served.describe(7)["lanes"] == opened
            assert victim.call("pull", 1, [0], [0]).status == OK
            assert victim.call("unlink", 1).status == OK
    victim.close()
    tap.close()


def test_a_recorded_handshake_opens_nothing(served):
    tap = Wiretap(served.listen_address())
    victim = Station(7, None, **OPTIONS)
    assert victim.call("link", tap.address).status == OK
    (said,) = (bytes(said) for said in tap.heard if said[:8] == CONTROL)
    victim.close()
    tap.close()
    with connected(served, said) as sock:
        assert is_closed(sock)
    assert served.call("describe", 7).status == "LLM_NOT_YET_LINK"


@pytest.mark.expects_log("link_clusters: .* secret")
def test_a_peer_without_the_secret_gets_nothing(served):
    for options in ({"link_secret": "wrong"}, {"transfer_backend": "tcp"}):
        stranger = Station(9, None, **options)
        assert stranger.call("link", served.listen_address()).status == "LLM_LINK_FAILED"
        assert stranger.call("pull", 1, [0], [0]).status == "LLM_NOT_YET_LINK"
        assert served.call("describe", 9).status == "LLM_NOT_YET_LINK"
        stranger.close()


def test_half_open_connections_are_capped_and_others_link(served):
    """Far more than are allowed, of every kind of half; meanwhile peers come and go."""
    halves = [b"", CONTROL[:3], CONTROL, CONTROL + hello()[:9], LANE, LANE + bytes(10)]
    before = served.fds()
    with contextlib.ExitStack() as stack:
        for number in range(listener.MAX_UNAUTHENTICATED + 60):
            stack.enter_context(connected(served, halves[number % len(halves)]))
            if number % 100 == 99:
                peer = Station(50 + number, None, **OPTIONS)
                assert peer.call("link", served.listen_address()).status == OK
                assert peer.call("pull", 1, [0], [0]).status == OK
                peer.close()
        # The strangers' ends are ours, too; so are the ends that the instance holds.
        held = served.fds() - before - (listener.MAX_UNAUTHENTICATED + 60)
        assert held <= listener.MAX_UNAUTHENTICATED + 20  # of threads


def test_slow_handshakes_end(served, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.3)
    began = time.monotonic()
    with connected(served) as control, connected(served) as lane:
        data = {control: CONTROL + hello(), lane: LANE + bytes(LANE_HELLO_BYTES)}
        with contextlib.suppress(ConnectionError):
            for at in range(60):  # a byte now and then does not buy more time
                for sock, opening in data.items():
                    sock.sendall(opening[at : at + 1])
                time.sleep(0.02)
        assert is_closed(control)
        assert is_closed(lane)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "flood", [encode_frame(Ping(id=1)), hello(), CONTROL], ids=["pings", "hellos", "preambles"]
)
def test_a_flood_before_the_proof(served, flood):
    with connected(served, CONTROL) as sock:
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(200):
                sock.sendall(flood * 100)
        assert is_closed(sock)


def test_connections_in_quick_succession(served):
    """Port scans and health checks, hundreds of them, while a peer pulls."""
    peer = Station(8, None, **OPTIONS)
    assert peer.call("link", served.listen_address()).status == OK
    for _ in range(300):
        with connected(served):
            pass
        assert peer.call("pull", 1, [0], [0]).status == OK
    peer.close()


def test_garbage_on_a_lane_that_is_up(served):
    """A lane whose bytes turn to garbage is closed; the link and its other lanes go on."""
    with Proxy(served.listen_address()) as proxy:
        peer = Station(8, None, **OPTIONS)
        assert peer.call("link", proxy.address).status == OK
        lane = proxy.open_connections(Kind.LANE)[0]
        lane.inject(secrets.token_bytes(4096))
        deadline = time.monotonic() + 5
        while peer.call("pull", 1, EVERY, EVERY).status != OK:
            assert time.monotonic() < deadline
        assert peer.call("check", 1).status == OK
        peer.close()


@pytest.mark.expects_log("wrong tag")
def test_messages_that_are_put_into_a_control_connection(served):
    """The first of them ends the connection; the peers link again by themselves."""
    with Proxy(served.listen_address()) as proxy:
        peer = Station(8, None, **OPTIONS)
        assert peer.call("link", proxy.address).status == OK
        (control,) = proxy.open_connections(Kind.CONTROL)
        control.inject((encode_frame(Ping(id=1)) + bytes(TAG_BYTES)) * 20_000)
        deadline = time.monotonic() + 10
        while control in proxy.open_connections(Kind.CONTROL):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while peer.call("pull", 1, EVERY, EVERY).status != OK:
            assert time.monotonic() < deadline
        assert peer.call("check", 1).status == OK
        peer.close()
