"""Members of domains: a link table and its domains each, over a data plane that moves nothing."""

import json
import os
import secrets
import socket
import time
from collections import Counter

import pytest

from llm_datadist._domains import Domains
from llm_datadist._links import LinkTable
from llm_datadist._options.settings import Config
from llm_datadist._types import RegisterMemStatus
from support.planes import EmptyPlane


class Nothing(EmptyPlane):
    """A data plane that only counts its links, and takes a while to connect if told so."""

    def __init__(self):
        self.calls = Counter()
        self.connect_seconds = 0.0

    def connect(self, peer, link_id, endpoint, client_lanes, server_lanes):
        for lane in (*client_lanes, *server_lanes):
            os.close(lane.fd)
        time.sleep(self.connect_seconds)
        self.calls["connect"] += 1

    def disconnect(self, data):
        self.calls["disconnect"] += 1


class Member:
    """One instance as far as domains are concerned."""

    def __init__(self, cluster_id, base_port, listen=None, **options):
        options = {"link_total_time_s": 20, "lanes_per_link": 1} | options
        config = Config(link_base_port=base_port, listen=listen, **options)
        self.plane = Nothing()
        self.links = LinkTable(cluster_id, config, secrets.randbits(64), self.plane)
        self.links.start(listen)
        self.domains = Domains(cluster_id, config, self.links)
        self.link = self.domains.link
        self.unlink = self.domains.unlink
        self.query = self.domains.query_register_mem_status
        self.describe = self.domains.describe_domain

    def settled(self, comm_id, seconds=15.0):
        """Poll as callers do until the domain is no longer PREPARING."""
        deadline = time.monotonic() + seconds
        while (status := self.query(comm_id)) is RegisterMemStatus.PREPARING:
            assert time.monotonic() < deadline, self.describe(comm_id)
            time.sleep(0.002)
        return status

    def peers(self):
        """Return the cluster ids that are linked."""
        return sorted(link.cluster_id for link in self.links.links())

    def die(self):
        """End as a killed process does, without a word to the peers."""
        for link in self.links.links():
            self.links._control.post(link.conversation.connection.abort)
        await_true(lambda: not self.links.links())
        self.close()

    def close(self):
        self.domains.close()
        self.links.close()


def await_true(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def free_base_port(count=8):
    """Return a port that is free, as are the next ones; below the range of outgoing connections."""
    while True:
        base = 12000 + secrets.randbelow(18000)
        held = []
        try:
            for port in range(base, base + count):
                held.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        finally:
            for sock in held:
                sock.close()
        return base


def rank_table(ranks=4, **servers):
    """Return a table of one server on this host, where rank r is device r."""
    server = {
        "server_id": "127.0.0.1",
        "device": [
            {"device_id": f"{rank}", "device_ip": "", "rank_id": f"{rank}"} for rank in range(ranks)
        ],
    } | servers
    return json.dumps(
        {"version": "1.2", "status": "completed", "server_count": "1", "server_list": [server]}
    )


@pytest.fixture
def base_port():
    return free_base_port()


@pytest.fixture
def member(base_port):
    """Make members on this test's ports; they end with it."""
    members = []

    def make(cluster_id, **options):
        members.append(Member(cluster_id, options.pop("base_port", base_port), **options))
        return members[-1]

    yield make
    for made in reversed(members):
        made.close()


@pytest.fixture
def pair(member):
    """Two members: cluster 10, rank 0, accepts; cluster 20, rank 1, dials."""
    return member(10), member(20)
