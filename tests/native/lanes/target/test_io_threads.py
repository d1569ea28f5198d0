"""How the lanes of many links are divided among the threads that serve them."""

import random
import socket
import time
from pathlib import Path

from llm_datadist import _native

LINKS = 40
NO_KEYS = bytes(16), bytes(16)


def sleeps():
    """How often each thread of this process has slept."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("voluntary_ctxt_switches"))
        found[task.name] = int(line.split()[1])
    return found


def test_the_lanes_that_peers_use_are_spread_over_the_threads():
    """Each peer has two, and uses the same one of them as the others."""
    node = _native.Node(random.getrandbits(63), 1024, 1 << 16)
    server = _native.LaneServer(node)
    links = [_native.Lanes(node, link_id) for link_id in range(LINKS)]
    for link_id, lanes in enumerate(links):
        for _ in range(2):
            near, far = socket.socketpair()
            lanes.add(_native.LaneSocket(near.detach(), *NO_KEYS))
            server.serve(_native.LaneSocket(far.detach(), *NO_KEYS), link_id)
    before = sleeps()
    for lanes in links:
        assert lanes.ping(time.monotonic_ns() + 20 * 10**9)[0] == 0
    slept = [count - before.get(thread, 0) for thread, count in sleeps().items()]
    assert len([count for count in slept if LINKS / 4 <= count <= 3 * LINKS / 4]) >= 2
    for lanes in links:
        lanes.close()
    server.close()
    node.close()
