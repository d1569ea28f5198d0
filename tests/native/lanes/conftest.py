"""Links for tests of lanes: an initiator here, a target here or in another process."""

from __future__ import annotations

import enum
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from llm_datadist import _native
from support.authority import Authority
from support.carried import Carried, tls_of
from support.framing import FramedSocket, header_of, lane_of

SERVING_PROGRAM = Path(__file__).with_name("serving_process.py")
ANY_ENTRY = (0xFFFFFFFF, 0)
NOTHING = (0, 0)


class Code(enum.IntEnum):
    OK = 0
    GONE = 1
    LOCAL_GONE = 2
    TIMEOUT = 3
    PEER_DEAD = 4
    REMOTE_FAULT = 5
    LOCAL_FAULT = 6
    DENIED = 7
    STALE = 8
    CLOSED = 9
    PROTOCOL = 10
    SYSTEM = 11
    CANCELLED = 12
    NO_LANE = 13


class Outcome(NamedTuple):
    code: int
    errno: int
    index: int
    moved_bytes: int


def soon(seconds=20.0):
    return time.monotonic_ns() + int(seconds * 1e9)


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


class Initiator:
    """The own side of a link, with as much own memory as the target offers."""

    def __init__(self, size):
        self.node = _native.Node(random.getrandbits(63), 1024, 1 << 16)
        self.lanes = _native.Lanes(self.node, 7)
        self.local = np.zeros(size, np.uint8)
        self.local[:] = 0  # brings the pages in: absent pages of another process are not read
        self.local_entry = self.node.open_entry(
            np.array([self.local.ctypes.data], np.uint64), np.array([size], np.uint64), True
        )
        self.remote_address = 0
        self.entry = NOTHING

    def arrays(self, ranges):
        """Absolute (local, remote, length) of offsets given as [(local, remote, length), ...]."""
        table = np.array(ranges, np.uint64).reshape(-1, 3)
        bases = (self.local.ctypes.data, self.remote_address, 0)
        return [np.ascontiguousarray(table[:, i] + np.uint64(base)) for i, base in enumerate(bases)]

    def descriptors(self, ranges):
        """The same as one array: all local addresses, then the remote ones, then the lengths."""
        return np.concatenate(self.arrays(ranges))

    def whole(self, block=1 << 16):
        """Everything, block by block, the blocks in random order at the target."""
        count = self.local.size // block
        remote = np.random.default_rng(1).permutation(count)
        return [(i * block, int(remote[i]) * block, block) for i in range(count)]

    def read(self, ranges, *, local_ref=NOTHING, entry=None, key=NOTHING, version=0, seconds=20.0):
        return Outcome(
            *self.lanes.read(
                self.descriptors(ranges),
                local_ref,
                entry or self.entry,
                key,
                version,
                soon(seconds),
            )
        )

    def write(self, ranges, *, local_ref=NOTHING, entry=None, version=0, seconds=20.0):
        return Outcome(
            *self.lanes.write(
                self.descriptors(ranges), local_ref, entry or self.entry, version, soon(seconds)
            )
        )

    def push(self, ranges, *, local_ref=None, entry=None, version=0, seconds=20.0):
        return Outcome(
            *self.lanes.push(
                self.descriptors(ranges),
                local_ref or self.local_entry,
                entry or self.entry,
                version,
                soon(seconds),
            )
        )

    def ping(self, seconds=5.0):
        return Code(self.lanes.ping(soon(seconds))[0])

    def own_address(self):
        """What the target needs to read this process; JSON can say it."""
        link = self.node.open_guard()
        proof = os.urandom(16)
        self.node.show_proof(link, proof)
        return (
            os.getpid(),
            self.node.incarnation,
            self.node.page_address,
            self.node.published_fd,
            self.node.published_bytes,
            link[0],
            proof.hex(),
        )


class LocalLink(Initiator):
    """Initiator and target in this process."""

    def __init__(self, size, lanes, pair):
        super().__init__(size)
        self.target = _native.Node(random.getrandbits(63), 1024, 1 << 16)
        self.server = _native.LaneServer(self.target)
        self.remote = np.random.default_rng(2).integers(0, 255, size, dtype=np.uint8)
        self.remote_address = self.remote.ctypes.data
        self.entry = self.open_entry(self.remote)
        self.host = None
        for _ in range(lanes):
            near, far = pair()
            self.server.serve(lane_of(far), 7)
            self.lanes.add(lane_of(near))

    def open_entry(self, array, *, accessible=True, device=-1):
        return self.target.open_entry(
            np.array([array.ctypes.data], np.uint64),
            np.array([array.nbytes], np.uint64),
            accessible,
            device,
        )

    def attach_host(self):
        *address, proof = self.own_address()
        self.host = _native.HostPeer(self.target, *address, bytes.fromhex(proof))
        self.server.attach_host(7, self.host)

    def expected(self, ranges):
        expected = np.zeros_like(self.local)
        for local, remote, length in ranges:
            expected[local : local + length] = self.remote[remote : remote + length]
        return expected

    def close(self):
        """Close everything and let it go, descriptors included. Idempotent."""
        if self.lanes is None:
            return
        self.lanes.close()
        self.server.close()
        if self.host is not None:
            self.host.close()
        self.target.close()
        self.node.close()
        self.lanes = self.server = self.host = self.target = self.node = None


class RemoteLink(Initiator):
    """The target is a child process, which can be stopped, continued and killed."""

    def __init__(self, size, lanes):
        super().__init__(size)
        pairs = [tcp_pair() for _ in range(lanes)]
        far = [far.fileno() for _, far in pairs]
        self.process = subprocess.Popen(
            [sys.executable, str(SERVING_PROGRAM), str(size), *map(str, far)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=far,
        )
        for near, other in pairs:
            other.close()
            self.lanes.add(lane_of(near))
        told = json.loads(self.process.stdout.readline())
        self.remote_address = told["address"]
        self.entry = tuple(told["entry"])

    def ask(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def attach_host(self):
        return self.ask("attach_host", *self.own_address())

    def signal(self, number):
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitpid(self.process.pid, os.WUNTRACED)

    def close(self):
        self.lanes.close()
        self.node.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def link():
    """Makes links whose target is in this process."""
    made = []

    def make(size=1 << 20, lanes=2, pair=tcp_pair):
        made.append(LocalLink(size, lanes, pair))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def remote_link():
    """Makes links whose target is another process."""
    made = []

    def make(size=1 << 20, lanes=2):
        made.append(RemoteLink(size, lanes))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Wire:
    """Frames made by hand, for ends that do not behave; without tags, see framing.py."""

    READ, WRITE, PUSH, CONSUME, VERSION, READ_LOG, PING = range(1, 8)
    CHECKSUM, PROBE, GATHER = 8, 9, 10
    CHUNK, OUTCOME, GO = 16, 17, 18
    INLINE = 2

    @staticmethod
    def header(kind, body=0, flags=0, sequence=1, **odd):
        return header_of(kind, body, flags=flags, sequence=sequence, **odd)

    @classmethod
    def request(cls, kind, descriptors=(), *, entry=NOTHING, flags=0, sequence=1, count=None):
        columns = [list(column) for column in zip(*descriptors, strict=True)]
        words = [word for column in columns for word in column]
        fixed = [0, 10**10, 0, *entry, 0, 0, 0, 0]
        body = struct.pack("<9QII", *fixed, len(descriptors) if count is None else count, 0)
        body += struct.pack(f"<{len(words)}Q", *words)
        return cls.header(kind, len(body), flags, sequence) + body

    @classmethod
    def outcome(cls, code=0, sequence=1, *, errno=0, index=-1, moved=0, value=0):
        body = struct.pack("<IiqQQ", code, errno, index, moved, value)
        return cls.header(cls.OUTCOME, 32, 0, sequence) + body

    @staticmethod
    def parse_outcome(frame):
        assert len(frame) == 48, frame
        kind = frame[5]
        assert kind == Wire.OUTCOME
        return Outcome(*struct.unpack("<IiqQ", frame[16:40]))


@pytest.fixture
def raw_lane():
    """Makes lanes of a local link whose initiator is the test itself."""
    made = []

    def make(link):
        near, far = tcp_pair()
        link.server.serve(lane_of(far), 7)
        near.settimeout(5)
        made.append(FramedSocket(near))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def wire():
    return Wire


@pytest.fixture
def code():
    return Code


@pytest.fixture
def any_entry():
    return ANY_ENTRY


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    return tls_of(Authority(tmp_path_factory.mktemp("tls")).issue())


@pytest.fixture(params=["tcp", "unix", "carried"])
def pair(request):
    """The kinds of stream sockets that a lane may be; the last one's bytes are encrypted."""
    if request.param != "carried":
        yield tcp_pair if request.param == "tcp" else socket.socketpair
        return
    carried = Carried(request.getfixturevalue("tls"))
    yield carried.pair
    carried.close()
