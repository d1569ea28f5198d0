"""Networks that end with the test, and stations on their hosts."""

import pytest

from llm_datadist.testing import PeerGroup
from support.hosts import Network, unavailable
from support.station import RemoteStation

TRANSFER_MS = 5000


@pytest.fixture(autouse=True)
def _namespaces():
    if reason := unavailable():
        pytest.skip(reason)


@pytest.fixture
def network():
    """Make networks of so many hosts."""
    made = []

    def make(count):
        made.append(Network(count))
        return made[-1].hosts

    yield make
    for each in made:
        each.close()


@pytest.fixture
def group(network):  # processes end before their hosts
    with PeerGroup(timeout_s=60) as made:
        yield made


@pytest.fixture
def station(group):
    """Make a station in a process on a host."""

    def make(host, cluster_id, *, ip="4", listen=True, **options):
        addresses = {"4": host.ip4, "6": host.ip6, "link-local": f"{host.link_local}%eth0"}
        address = addresses[ip]
        printed = address if ip == "4" else f"[{address}]"
        options = {"sync_kv_timeout": TRANSFER_MS, "local_ip": address} | options
        prefix = options.pop("command_prefix", host.command_prefix)
        return RemoteStation(
            group,
            cluster_id,
            f"{printed}:0" if listen else None,
            command_prefix=prefix,
            **options,
        )

    return make
