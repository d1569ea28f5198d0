"""Which data path a pair takes, given what the kernel lets them share, and that they can tell."""

import pytest

from support.station import OK, digest, pattern

BLOCKS, WORDS = 16, 1024
EVERY = list(range(BLOCKS))
PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
USER_NAMESPACE = ("unshare", "--user", "--map-root-user")

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def moves_right(member, remote):
    """Check a pull and a push, and the other way round, byte for byte."""
    for one, other in ((member, remote), (remote, member)):
        one.value("fill", 1)
        other.value("fill", 2)
        one.value("pull", other.cluster_id, EVERY, EVERY)
        assert one.value("digest") == digest(pattern(2, BLOCKS, WORDS))
        one.value("fill", 3)
        one.value("push", other.cluster_id, EVERY, EVERY)
        assert other.value("digest") == digest(pattern(3, BLOCKS, WORDS))


def paths(member, remote):
    """Return what both ends say about the path: (backend, why) each."""
    for one, other in ((member, remote), (remote, member)):
        described = one.value("describe", other.cluster_id)
        yield described["backend"]["device"], described["why"]


def test_hosts_that_share_a_kernel_share_memory(network, station):
    """Another network namespace hides nothing of the process: the same-host path serves."""
    hosts = network(2)
    remote, local = station(hosts[0], 1), station(hosts[1], 2)
    assert local.call("link", remote.address).status == OK
    for backend, why in paths(local, remote):
        assert backend == "host"
        assert "best" in why["host"]
    before = local.value("received_bytes", "eth0")
    moves_right(local, remote)
    assert local.value("received_bytes", "eth0") - before < 512 * 1024  # of 3 MiB and more


@pytest.mark.parametrize("backends", [("tcp", "tcp"), ("tcp", "auto"), ("auto", "tcp")])
def test_lanes_when_either_side_insists(network, station, backends):
    hosts = network(2)
    remote = station(hosts[0], 1, transfer_backend=backends[0])
    local = station(hosts[1], 2, transfer_backend=backends[1])
    assert local.call("link", remote.address).status == OK
    assert [backend for backend, _ in paths(local, remote)] == ["tcp", "tcp"]
    moves_right(local, remote)


def test_a_host_path_that_cannot_be_had_fails_the_link(network, station):
    hosts = network(2)
    remote = station(hosts[0], 1, transfer_backend="tcp")
    local = station(hosts[1], 2, transfer_backend="host")
    assert local.call("link", remote.address).status == "LLM_LINK_FAILED"


def test_another_pid_namespace_falls_back_to_lanes(network, station):
    hosts = network(2)
    remote = station(hosts[0], 1)
    local = station(hosts[1], 2, command_prefix=(*hosts[1].command_prefix, *PID_NAMESPACE))
    assert local.call("link", remote.address).status == OK
    for backend, why in paths(local, remote):
        assert backend == "tcp"
        assert "process-id namespace" in why["host"]
    moves_right(local, remote)


def test_another_user_namespace_falls_back_where_it_may_not_read(network, station):
    """Root outside may read root inside, not the other way round: each end has its own path."""
    hosts = network(2)
    remote = station(hosts[0], 1)
    local = station(hosts[1], 2, command_prefix=(*hosts[1].command_prefix, *USER_NAMESPACE))
    assert local.call("link", remote.address).status == OK
    (inside, why_inside), (outside, _) = paths(local, remote)
    assert inside == "tcp"
    assert "cannot be read" in why_inside["host"]
    assert outside in {"host", "tcp"}
    moves_right(local, remote)
