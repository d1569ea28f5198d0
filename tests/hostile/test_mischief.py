"""A hostile peer that does everything at random, in both roles and all postures.

Some seconds of it in the ordinary suite; `make hostile` does it for LDD_HOSTILE_MINUTES in all.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest

from support.hostile.attackers import Remote
from support.hostile.victims import EVERY, Victim
from support.rig import forget
from support.station import OK

MINUTES = float(os.environ.get("LDD_HOSTILE_MINUTES") or 0)
SEED = int(os.environ.get("LDD_SEED") or 1)
ROUND_S = 5.0 if MINUTES else 1.5
TOTAL_S = MINUTES * 60 / 8 if MINUTES else ROUND_S  # of each posture and role

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(TOTAL_S * 2 + 120),
    pytest.mark.expects_log(".*"),
]


def deal(victim, peer, address, seconds, chance):
    """Have the victim link to the rogue, pull from it and push to it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if address is not None and victim.call("describe", 66).status != OK:
            victim.call("link", address, 1000)
        call = chance.choice(["pull", "push", "pull", "unlink_forced"])
        if call != "unlink_forced":
            victim.call(call, 66, EVERY, EVERY)
        elif chance.random() < 0.1:
            victim.call(call, 66)
        time.sleep(0.002)
    return peer.peer.receive(60)


@pytest.mark.parametrize("role", ["dials", "is dialed"])
def test_no_byte_outside_is_read_or_written(posture, victim, group, role, caplog):
    total, seed = Counter(), SEED
    peer = Remote(group, "attacker", *posture)
    address = peer.listen() if role == "is dialed" else None
    honest = Victim(5, **posture.options)
    assert honest.call("link", victim.listen_address()).status == OK
    deadline = time.monotonic() + TOTAL_S  # the processes have started
    while time.monotonic() < deadline:
        target = victim.listen_address() if address is None else None
        closed = victim.closed_addresses()
        peer.peer.send(["misbehave", target, closed, victim.tokens(), ROUND_S, seed])
        done, counts = deal(victim, peer, address, ROUND_S, random.Random(seed))
        assert done, counts
        total.update(counts)
        told = f"seed {seed}, {posture.name}, the rogue {role}: {counts}"
        assert victim.is_outside_as_it_was(), f"memory outside was written: {told}"
        assert not counts["tokens heard"], f"memory outside was read: {told}"
        assert not counts["granted outside"], told
        in_data = [token in victim.data.tobytes() for token in victim.tokens()]
        assert not any(in_data), f"memory outside was read into a cache: {told}"
        victim.fill(1)
        assert honest.call("pull", 1, EVERY, EVERY).status == OK, told
        assert (honest.data == victim.data).all()
        forget(caplog)
        seed += 1
    assert total["links"] > 0
    assert total["requests"] > 0
    print(f"{posture.name}, the rogue {role}: {dict(total)}; 0 bytes outside")
    honest.close()
