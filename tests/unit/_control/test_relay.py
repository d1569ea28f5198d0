"""Relays of encrypted lanes, and TLS sessions by themselves."""

import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from llm_datadist._control.relay import _relay_threads
from llm_datadist._control.tls import TlsError, TlsSession
from support.authority import Authority
from support.carried import Carried, shaken, tls_of


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return tls_of(Authority(tmp_path_factory.mktemp("tls")).issue())


@pytest.fixture
def carried(tls):
    one = Carried(tls)
    yield one
    one.close()


def core_end(sock):
    """Take the carrier that comes first, as the native core does."""
    mark, fds, _, _ = socket.recv_fds(sock, 1, 1)
    assert mark == b"\0"
    for fd in fds:
        os.close(fd)
    sock.setblocking(True)
    sock.settimeout(10)
    return sock


def ends(carried):
    return [core_end(sock) for sock in carried.pair()]


def received(sock, size):
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"{len(data)} of {size} bytes"
        data += part
    return data


@pytest.mark.parametrize("step", [1, 7, 20_000])
def test_records_may_come_in_any_pieces(tls, step):
    near, far = shaken(tls)
    assert near.version == far.version == "TLSv1.3"
    plain = random.Random(step).randbytes(50_000 if step > 1 else 300)
    records = near.encrypt(plain)
    assert plain not in records
    got, buffer = b"", bytearray(1000)
    for begin in range(0, len(records), step):
        far.feed(records[begin : begin + step])
        while size := far.decrypt_into(buffer):
            got += buffer[:size]
    assert got == plain


def test_a_changed_record_is_an_error(tls):
    near, far = shaken(tls)
    records = bytearray(near.encrypt(b"payload"))
    records[-1] ^= 1
    far.feed(bytes(records))
    with pytest.raises(TlsError, match=r"mac|decrypt"):
        far.decrypt_into(bytearray(100))


def test_what_is_no_tls_is_an_error(tls):
    session = TlsSession(tls.accepting, accepting=True)
    session.feed(b"LDD1 is not the beginning of a handshake")
    with pytest.raises(TlsError):
        session.shake()


def test_bytes_pass_both_ways_at_once(carried):
    near, far = ends(carried)
    plain = [random.Random(i).randbytes(3 << 20) for i in range(2)]
    senders = [
        threading.Thread(target=sock.sendall, args=(data,))
        for sock, data in zip((near, far), plain, strict=True)
    ]
    for sender in senders:
        sender.start()
    back = []
    reader = threading.Thread(target=lambda: back.append(received(near, len(plain[1]))))
    reader.start()
    assert received(far, len(plain[0])) == plain[0]
    reader.join(20)
    assert back == [plain[1]]
    for sender in senders:
        sender.join()
    near.close()
    far.close()


def test_who_does_not_read_holds_the_other_back(carried):
    """What is under way is bounded: by the sockets and one chunk at each relay."""
    near, far = ends(carried)
    near.setblocking(False)
    sent, idle_since = 0, time.monotonic()
    while time.monotonic() - idle_since < 0.3:
        try:
            sent += near.send(bytes(1 << 16))
            idle_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    assert sent < 32 << 20
    assert received(far, sent) == bytes(sent)
    near.close()
    far.close()


@pytest.mark.parametrize("closer", [0, 1])
def test_one_end_closes(carried, closer):
    pair = ends(carried)
    pair[closer].sendall(b"last words")
    pair[closer].close()
    other = pair[1 - closer]
    if closer:  # the end that asks gets what came before
        assert received(other, 10) == b"last words"
    assert other.recv(100) in (b"", b"last words")
    other.close()


def test_an_end_that_stops_sending_can_still_receive(carried):
    near, far = ends(carried)
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.close()
    assert near.recv(1) == b""
    near.close()


@pytest.mark.expects_log("encrypted lane to .* ends: ")
def test_a_changed_byte_ends_the_lane(carried):
    near, far = ends(carried)
    with socket.socket(fileno=os.dup(carried.wires[0].fileno())) as intruder:
        intruder.send(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record, as it looks
        assert far.recv(1) == b""
        assert near.recv(1) == b""
    near.close()
    far.close()


def test_nothing_is_left(carried, eventually):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    for sock in ends(carried):
        sock.close()
    before = descriptors()
    for _ in range(5):
        near, far = ends(carried)
        near.sendall(b"x")
        assert far.recv(1) == b"x"
        near.close()
        assert far.recv(1) == b""
        far.close()
    eventually(lambda: descriptors() <= before)


def test_closing_ends_lanes_and_threads(carried):
    def threads():
        return [each for each in threading.enumerate() if each.name.startswith("test-relay")]

    assert not threads()
    pairs = [ends(carried) for _ in range(3)]
    assert 1 <= len(threads()) <= 4
    carried.close()
    assert not threads()
    for pair in pairs:
        for sock in pair:
            assert sock.recv(1) == b""
            sock.close()
    for sock in carried.pair():  # as good as closed
        core_end(sock)
        assert sock.recv(1) == b""
        sock.close()
    carried.close()


def test_idle_lanes_cost_nothing(carried):
    pairs = [ends(carried) for _ in range(8)]
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_fewer_threads_do_where_no_more_can_be_had(monkeypatch):
    real, started = threading.Thread.start, []

    def start(thread):
        if len(started) == 1:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        threads = _relay_threads("test", 3)
        with pytest.raises(OSError, match=r"can't start new thread.*ulimit -u"):
            _relay_threads("test", 3)
    assert len(threads) == 1
    threads[0].stop()
