"""Many domains at once on a machine that is busy: all of them come about, at all their members.

One round in the short form, with all instances in one process; 50 rounds of 8 processes under 40
busy ones in the long form (`make domains-long`; `LDD_ROUNDS`, `LDD_BUSY`, `LDD_SEED` change it).
"""

import json
import os
import random
import secrets
import subprocess
import sys
import time

import pytest

from llm_datadist import RegisterMemStatus
from llm_datadist.testing import PeerGroup
from support.setup import started

LONG = bool(os.environ.get("LDD_LONG"))
ROUNDS = int(os.environ.get("LDD_ROUNDS", "50" if LONG else "1"))
BUSY = int(os.environ.get("LDD_BUSY", "40" if LONG else "2"))
SEED = int(os.environ.get("LDD_SEED", "1"))
DOMAINS, INSTANCES = 40, 8
PEERS = INSTANCES if LONG else 2  # processes, or threads in the short form
LIMIT_SECONDS = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 300 * ROUNDS if LONG else 120)]


def plan(round_number, seed):
    """Return the domains of a round: name, ranks, rank table. Both directions occur in a pair."""
    choice = random.Random(f"{seed} {round_number}")
    domains = []
    for number in range(DOMAINS):
        members = choice.sample(range(1, INSTANCES + 1), choice.choice([2, 2, 2, 3, 4]))
        ranks = {cluster_id: rank for rank, cluster_id in enumerate(members)}
        devices = [
            {"device_id": f"{cluster_id}", "device_ip": "127.0.0.1", "rank_id": f"{rank}"}
            for cluster_id, rank in ranks.items()
        ]
        # The first candidate of each member cannot be reached from this host.
        server = {"server_id": "a", "host_ip": "127.0.0.3", "device": devices}
        table = {"version": "1.0", "server_count": "1", "server_list": [server]}
        domains.append((f"{round_number}/{number}", ranks, json.dumps(table)))
    return domains


def link_all(instances, domains, choice):
    """Call link for every domain at each of its members, in an order of this process's own."""
    calls = [(at, domain) for at in instances for domain in domains if at in domain[1]]
    choice.shuffle(calls)
    return [(instances[at], instances[at].link(*domain)) for at, domain in calls]


def outcomes(linked):
    """Poll until no domain prepares; return those that are not OK, and the seconds it took."""
    began, pending = time.monotonic(), list(linked)
    while pending and time.monotonic() < began + LIMIT_SECONDS + 60:
        pending = [
            (instance, comm_id)
            for instance, comm_id in pending
            if instance.query_register_mem_status(comm_id) is RegisterMemStatus.PREPARING
        ]
        time.sleep(0.02)
    return _not_ok(linked), time.monotonic() - began


def _not_ok(linked):
    return [
        str(instance.describe_domain(comm_id))
        for instance, comm_id in linked
        if instance.query_register_mem_status(comm_id) is not RegisterMemStatus.OK
    ]


def take_part(here, cluster_ids, base_port, rounds, seed):
    """Run all rounds; return for each what was not OK, and how long it took."""
    results = []
    for round_number in range(rounds):
        instances = {
            cluster_id: started(
                cluster_id, listen=None, link_base_port=base_port, link_total_time=LIMIT_SECONDS
            )
            for cluster_id in cluster_ids
        }
        here.barrier("started", PEERS)  # a process may take minutes to start on a busy machine
        choice = random.Random(f"{seed} {round_number} {cluster_ids}")
        linked = link_all(instances, plan(round_number, seed), choice)
        failed, seconds = outcomes(linked)
        here.barrier("settled", PEERS)
        failed += _not_ok(linked)  # an OK that does not last
        here.barrier("seen", PEERS)
        for instance in instances.values():
            instance.finalize()
        here.barrier("ended", PEERS)  # the ports are free for the next round
        results.append([len(linked), failed, seconds])
    return results


@pytest.mark.expects_log("connection from", "more connections")
def test_40_domains_of_8_instances_on_a_busy_machine():
    base_port = 12000 + 16 * secrets.randbelow(1000)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    try:
        with PeerGroup("process" if LONG else "thread", timeout_s=60 + 300 * ROUNDS) as group:
            share = INSTANCES // PEERS
            for at in range(PEERS):
                ids = list(range(1 + at * share, 1 + (at + 1) * share))
                group.start(take_part, ids, base_port, ROUNDS, SEED)
            values = group.values()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    failed = [text for results in values for _, texts, _ in results for text in texts]
    ends = sum(number for results in values for number, _, _ in results)
    slowest = max(seconds for results in values for _, _, seconds in results)
    print(f"\n{ROUNDS} rounds, {ends} ends, {len(failed)} not OK, slowest round {slowest:.1f} s")
    assert failed == []
