"""Postures, victims, and the checks after every attack."""

from __future__ import annotations

import pytest

from llm_datadist.testing import PeerGroup
from support.authority import Authority
from support.hostile.attackers import Attacker, Remote
from support.hostile.peer import POSTURES, Posture
from support.hostile.victims import BLOCKS, EVERY, WORDS, Victim
from support.rig import forget
from support.station import OK, digest, pattern

SECRET = "correct horse battery staple"


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def postures(authority):
    """Postures by name; certificates are made once."""
    files = authority.issue()
    return {
        "nothing": Posture("nothing"),
        "secret": Posture("secret", secret=SECRET),
        "TLS": Posture("TLS", tls=files),
        "TLS lanes": Posture("TLS lanes", tls=files, lanes=True),
    }


@pytest.fixture(params=POSTURES)
def posture(request, postures):
    return postures[request.param]


@pytest.fixture
def group():
    with PeerGroup(timeout_s=60) as made:
        yield made


@pytest.fixture
def victim(posture, caplog):
    """An instance that must still serve an honest peer afterwards."""
    made = Victim(1, **posture.options)
    made.fill(1)
    yield made
    made.fill(1)
    honest = Victim(2, **posture.options)
    assert honest.call("link", made.listen_address()).status == OK
    assert honest.call("pull", 1, EVERY, EVERY).status == OK
    assert digest(honest.data) == digest(pattern(1, BLOCKS, WORDS))
    honest.close()
    made.close()
    forget(caplog)


@pytest.fixture
def attacker(posture):
    """Make attackers in this process."""
    made = []

    def make(**options):
        made.append(Attacker(posture, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def elsewhere(group, posture):
    """Make attackers in other processes."""
    return lambda **options: Remote(group, "attacker", *posture, **options)
