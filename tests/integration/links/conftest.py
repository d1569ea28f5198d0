"""Link tables on real sockets, with a data plane that keeps its sockets and moves nothing.

Tables live in this process, or in children of their own where death matters (`child.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links import LinkTable
from llm_datadist._options.settings import Config
from llm_datadist._types import LLMClusterInfo
from support.planes import EmptyPlane

CHILD = Path(__file__).with_name("child.py")


class Plane(EmptyPlane):
    """A delegate that keeps what it is given, and can be told to refuse or to wait."""

    def __init__(self):
        self.links = {}  # link id -> (peer, endpoint, client sockets, server sockets)
        self.changed = threading.Condition()
        self.refusal = None
        self.gate = threading.Event()  # connect passes when set
        self.gate.set()
        self.entered = threading.Event()  # a connect has begun
        self.disconnects = 0

    def endpoint(self, link_id):
        return f"{id(self)}/{link_id}".encode()

    def connect(self, peer, link_id, endpoint, client_lanes, server_lanes):
        clients = [socket.socket(fileno=lane.fd) for lane in client_lanes]
        servers = [socket.socket(fileno=lane.fd) for lane in server_lanes]
        self.entered.set()
        assert self.gate.wait(10)
        if self.refusal is not None:
            for sock in (*clients, *servers):
                sock.close()
            raise self.refusal
        with self.changed:
            self.links[link_id] = (peer, endpoint, clients, servers)
            self.changed.notify_all()
        return link_id

    def disconnect(self, data):
        with self.changed:
            _, _, clients, servers = self.links.pop(data)
            self.disconnects += 1
            self.changed.notify_all()
        for sock in (*clients, *servers):
            sock.close()

    def wait(self, count, seconds=5.0):
        """Wait until there are `count` links."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.links) == count, seconds), self.links

    def only(self):
        """Return what is kept for the one link."""
        (kept,) = self.links.values()
        return kept


class End:
    """A table and its data plane."""

    def __init__(self, cluster_id, listen, incarnation=None, **options):
        self.plane = Plane()
        config = Config(**{"lanes_per_link": 2} | options)
        self.incarnation = secrets.randbits(63) if incarnation is None else incarnation
        self.table = LinkTable(cluster_id, config, self.incarnation, self.plane)
        self.lost = []
        self.table.hooks.on_lost = self.lost.append
        self.table.start(listen)

    @property
    def address(self):
        return self.table.listen_address

    def link(self, *others, timeout_ms=5000, **named):
        """Link to other ends (or infos); return the results."""
        return self.table.link_clusters([info_of(o, **named) for o in others], timeout_ms)

    def unlink(self, *others, timeout_ms=5000, force=False, **named):
        return self.table.unlink_clusters([info_of(o, **named) for o in others], timeout_ms, force)

    def linked(self):
        return sorted(link.cluster_id for link in self.table.links())


def too_late(one, other):
    """Link while the link is being set up or taken down for long; return the result of the call.

    The first try is short, so that the test is; a busy machine may need another to get so far.
    """
    for timeout_ms in (50, 500, 5000):
        (result,) = one.link(other, timeout_ms=timeout_ms)
        if result.status is LLMStatusCode.LLM_PROCESSING_LINK:
            break
    assert result.status is LLMStatusCode.LLM_PROCESSING_LINK, result
    assert f" {timeout_ms} ms" in result.reason
    return result


def info_of(other, cluster_id=None, local="127.0.0.1"):
    """Return the LLMClusterInfo of an end, a child, an address or a cluster id."""
    if isinstance(other, LLMClusterInfo):
        return other
    info = LLMClusterInfo()
    if isinstance(other, int):
        info.remote_cluster_id = other
        return info
    addresses = other if isinstance(other, list) else [getattr(other, "address", other)]
    for address in addresses:
        info.append_remote_ip_info(*address)
    if local is not None:
        info.append_local_ip_info(local, 0)
    if cluster_id is not None:
        info.remote_cluster_id = cluster_id
    return info


class Child:
    """A table in a process of its own."""

    def __init__(self, cluster_id, listen_port=0, mode="serve"):
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), str(cluster_id), str(listen_port), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.address = tuple(self._read())

    def _read(self):
        assert select.select([self.process.stdout], [], [], 20)[0], "the child says nothing"
        return json.loads(self.process.stdout.readline())

    def ask(self, *command):
        """Have the child do something; return what it answers."""
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self._read()

    def signal(self, number):
        os.kill(self.pid, number)

    def freeze(self):
        """Stop it, and wait until it has stopped."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def close(self):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def child():
    """Make children that are killed with the test."""
    children = []

    def make(cluster_id, **options):
        children.append(Child(cluster_id, **options))
        return children[-1]

    yield make
    for one in children:
        one.close()


@pytest.fixture
def end(child):  # children outlive the ends, so that their end is nobody's loss
    """Make ends that are closed with the test."""
    ends = []

    def make(cluster_id=1, listen=("127.0.0.1", 0), **options):
        ends.append(End(cluster_id, listen, **options))
        return ends[-1]

    yield make
    for one in ends:
        one.plane.gate.set()
        one.table.close()
        assert not one.plane.links


@pytest.fixture
def info():
    return info_of


@pytest.fixture(name="too_late")
def too_late_fixture():
    return too_late


@pytest.fixture
def black_hole():
    """An address where connections are accepted by the kernel and by nobody else."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(8)
        yield sock.getsockname()


@pytest.fixture
def refusing():
    """An address where nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()
