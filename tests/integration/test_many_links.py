"""Very many links of one instance: what they cost, and that each of them works.

100 links in the short form; 1,000, with the figures printed, in the long one (`LDD_LONG=1`).
"""

import os
import time
from pathlib import Path

import pytest

from llm_datadist.testing import PeerGroup
from support.crowd import Member, serve

LONG = bool(os.environ.get("LDD_LONG"))
LINKS = 1000 if LONG else 100
PROCESSES = 4 if LONG else 2
LANES = 2  # in each direction, of a link with little to do
HUB = 1
FDS_PER_LINK = 2 * LANES + 1  # and a control connection
THREADS = 64 + 24  # workers that wait for another call, and those of the native core
IDLE_SECONDS = 10.0 if LONG else 1.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def fds():
    return len(list(Path("/proc/self/fd").iterdir()))


def threads():
    return len(list(Path("/proc/self/task").iterdir()))


def resident_kib():
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1])


def idle_share(seconds=IDLE_SECONDS):
    """Return the part of one core that this process uses while nothing is asked of it."""
    began, used = time.monotonic(), time.process_time()
    time.sleep(seconds)
    return (time.process_time() - used) / (time.monotonic() - began)


class Crowd:
    """Processes that hold the instances which link the hub."""

    def __init__(self, group, hub, options):
        share = LINKS // PROCESSES
        self.peers = [
            group.start(serve, 1000 + at * share, share, hub.instance.listen_address, HUB, options)
            for at in range(PROCESSES)
        ]

    def ask(self, order):
        """Give an order to all; return one answer for each instance."""
        for peer in self.peers:
            peer.send(order)
        return [each for peer in self.peers for each in peer.receive(500)]

    def close(self):
        for peer in self.peers:
            peer.send("close")
        assert all(peer.receive(300) for peer in self.peers)


@pytest.fixture
def hub():
    made = []

    def make(**options):
        made.append(Member(HUB, "127.0.0.1:0", **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def group():
    with PeerGroup(timeout_s=300) as made:
        yield made


@pytest.mark.parametrize("backend", ["tcp", "auto"] if LONG else ["tcp"])
def test_links_cost_descriptors_and_little_else(hub, group, backend):
    """No thread per link or lane; idle lanes cost no CPU; all that a link holds goes with it."""
    options = {"transfer_backend": backend, "heartbeat_ms": 0}
    one = hub(**options)
    crowd = Crowd(group, one, options)
    before = {"fds": fds(), "kib": resident_kib(), "threads": threads()}
    began = time.monotonic()
    seconds = sorted(crowd.ask("link"))
    elapsed = time.monotonic() - began
    assert len(seconds) == LINKS
    assert fds() - before["fds"] <= (FDS_PER_LINK + (backend == "auto") * 2) * LINKS + 32
    assert threads() <= before["threads"] + THREADS
    kib = (resident_kib() - before["kib"]) / LINKS
    assert kib < 512
    pulled = time.monotonic()
    assert crowd.ask("pull") == [HUB] * LINKS
    pulled = time.monotonic() - pulled
    for member in (1000, 1000 + LINKS // 2, 999 + LINKS):
        assert one.pull(member) == member % 251
    time.sleep(6.0 if LONG else 0.2)  # workers go
    share = idle_share()
    assert share < 0.05, "idle lanes cost CPU"
    print(
        f"\n{LINKS} links ({backend}, {LANES} lanes each way): {elapsed / LINKS * 1e3:.1f} ms "
        f"per link ({seconds[LINKS // 2] * 1e3:.1f} ms median of a call, {PROCESSES} processes at "
        f"once), {kib:.0f} KiB resident and {(fds() - before['fds']) / LINKS:.1f} descriptors per "
        f"link at the hub, {threads()} threads, {share:.2%} of a core when idle, "
        f"{pulled / LINKS * 1e3:.1f} ms per first pull"
    )
    crowd.close()
    deadline = time.monotonic() + 30
    while fds() > before["fds"] + 8:  # those of workers
        assert time.monotonic() < deadline, f"{fds()} descriptors, {before['fds']} before"
        time.sleep(0.05)


# A peer that is finalized while it is asked may be seen to break off before its farewell is read.
@pytest.mark.expects_log("lost: the connection broke")
@pytest.mark.skipif(not LONG, reason="the long form: LDD_LONG=1")
def test_heartbeats_of_many_links(hub, group):
    """With the default heartbeats, which ask the peers' native threads."""
    one = hub(transfer_backend="tcp")
    crowd = Crowd(group, one, {"transfer_backend": "tcp"})
    crowd.ask("link")
    time.sleep(6.0)
    share = idle_share()
    print(f"\n{LINKS} links with heartbeats: {share:.2%} of a core at the hub")
    assert share < 0.3
    assert crowd.ask("pull") == [HUB] * LINKS
    crowd.close()
