"""Members that are killed and restarted at random moments: the others get their domains back.

Two rounds in the short form; 200 in the long one (`make domains-long`, `LDD_ROUNDS` and `LDD_SEED`
change it). Four processes have six domains of two to four members. Each round kills one of them at
a random moment, before or after OK, and starts it again. A member that sees FAILED calls `link`
again, with or without `unlink`. All domains must be OK again at all members, and the only reason
for FAILED is a member that was killed, or that has left because another one was.
"""

import json
import os
import random
import re
import secrets
import time

import pytest

from llm_datadist import RegisterMemStatus
from llm_datadist.testing import PeerGroup
from support.setup import started

LONG = bool(os.environ.get("LDD_LONG"))
ROUNDS = int(os.environ.get("LDD_ROUNDS", "200" if LONG else "2"))
SEED = int(os.environ.get("LDD_SEED", "1"))
SETTLE_SECONDS = 100
MEMBERS = (1, 2, 3, 4)
DOMAINS = [[1, 2], [2, 1], [4, 3], [1, 2, 3], [3, 4, 1], [4, 3, 2, 1]]
CAUSES = re.compile(r"the link to cluster \d is gone|cluster \d has left the domain")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 30 * ROUNDS)]


def arguments(number):
    """Return the arguments of `link` for a domain."""
    members = DOMAINS[number]
    ranks = {cluster_id: rank for rank, cluster_id in enumerate(members)}
    devices = [
        {"device_id": f"{cluster_id}", "rank_id": f"{rank}"} for cluster_id, rank in ranks.items()
    ]
    server = {"server_id": "127.0.0.1", "device": devices}
    return f"domain {number}", ranks, json.dumps({"version": "1.0", "server_list": [server]})


class Memberships:
    """The domains of one member, which are linked again whenever they have failed."""

    def __init__(self, cluster_id, base_port, seed):
        self._instance = started(
            cluster_id, listen=None, link_base_port=base_port, link_total_time=120
        )
        self._choice = random.Random(f"{seed} {cluster_id} {secrets.randbits(32)}")
        mine = [number for number, members in enumerate(DOMAINS) if cluster_id in members]
        self._choice.shuffle(mine)
        self._ids = {number: self._instance.link(*arguments(number)) for number in mine}
        self.reasons = []

    def poll(self):
        """Call link again for the domains that have failed."""
        for number, comm_id in self._ids.items():
            status = self._instance.query_register_mem_status(comm_id)
            if status is not RegisterMemStatus.FAILED:
                continue
            self.reasons.append(self._instance.describe_domain(comm_id)["reason"])
            unlinks_first = self._choice.random() < 0.5
            if unlinks_first:
                self._instance.unlink(comm_id)
            self._ids[number] = self._instance.link(*arguments(number))
            if not unlinks_first:
                self._instance.unlink(comm_id)

    def report(self):
        """Return the domains that are not OK with all links up, and why others have failed."""
        facts = [self._instance.describe_domain(comm_id) for comm_id in self._ids.values()]
        pending = [
            str(each)
            for each in facts
            if each["status"] != "OK" or not all(peer["linked"] for peer in each["peers"])
        ]
        reasons, self.reasons = self.reasons, []
        return [pending, reasons]

    def close(self):
        self._instance.finalize()


def live(here, cluster_id, base_port, seed):
    """Be a member until told to end."""
    domains = Memberships(cluster_id, base_port, seed)
    while True:
        domains.poll()
        try:
            order = here.receive(timeout_s=0.01)
        except TimeoutError:
            continue
        if order == "end":
            domains.close()
            return
        here.send(domains.report())


class Crew:
    """The members, seen from the test."""

    def __init__(self, group, base_port):
        self._group = group
        self._base_port = base_port
        self._peers = {}
        self.reasons = []
        for cluster_id in MEMBERS:
            self.start(cluster_id)

    def start(self, cluster_id):
        self._peers[cluster_id] = self._group.start(live, cluster_id, self._base_port, SEED)

    def kill(self, cluster_id):
        peer = self._peers.pop(cluster_id)
        peer.kill()
        peer.wait()

    def settle(self):
        """Wait until all domains are OK at all members, in two looks in a row."""
        deadline, good = time.monotonic() + SETTLE_SECONDS, 0
        while good < 2:
            pending = []
            for peer in self._peers.values():
                peer.send("report")
                unsettled, reasons = peer.receive()
                pending += unsettled
                self.reasons += reasons
            good = 0 if pending else good + 1
            assert time.monotonic() < deadline, pending
            time.sleep(0.02)

    def end(self):
        for peer in self._peers.values():
            peer.send("end")
            peer.value()


def test_members_that_are_killed_at_random_moments_come_back():
    choice = random.Random(SEED)
    slowest = 0.0
    with PeerGroup(timeout_s=SETTLE_SECONDS) as group:
        crew = Crew(group, 12000 + 16 * secrets.randbelow(1000))
        for round_number in range(ROUNDS):
            if round_number % 2:  # after OK, else while the domains are being linked
                began = time.monotonic()
                crew.settle()
                slowest = max(slowest, time.monotonic() - began)
            time.sleep(choice.random() * (1.5 if LONG else 0.3))
            victim = choice.choice(MEMBERS)
            crew.kill(victim)
            time.sleep(choice.random() * 0.2)
            crew.start(victim)
        crew.settle()
        crew.end()
    causes = [reason for reason in crew.reasons if not CAUSES.match(reason)]
    print(f"\n{ROUNDS} kills, {len(crew.reasons)} domains failed, slowest settling {slowest:.1f} s")
    assert causes == []
