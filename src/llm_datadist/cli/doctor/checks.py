"""All checks of `doctor`, in the order in which their findings are shown."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor import (
    credentials,
    gpu,
    limits,
    loopback,
    names,
    nixl,
    peer,
    ports,
    rdma,
    same_host,
    shared_memory,
    system,
    transfers,
)
from llm_datadist.cli.doctor.finding import problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from llm_datadist.cli.doctor.finding import Finding

    Check: TypeAlias = Callable[[], Iterable[Finding]]

__all__ = ["all_checks", "findings"]


def all_checks(
    listen: list[str], peers: list[str], *, timeout_s: float, first_generation: bool
) -> list[Check]:
    """Return the checks of one run.

    Args:
        listen: Addresses at which instances shall listen.
        peers: Addresses of peers.
        timeout_s: Limit of each step with a peer.
        first_generation: Whether the peers are in first-generation mode.
    """
    return [
        system.versions,
        system.kernel,
        system.cores,
        same_host.same_host_reads,
        same_host.pid_namespace,
        loopback.tcp_rate,
        limits.descriptors,
        limits.locked_memory,
        limits.stack,
        limits.sizes,
        shared_memory.shared_memory,
        rdma.rdma,
        nixl.nixl,
        gpu.gpus,
        names.own_name,
        partial(ports.listen_ports, listen),
        ports.domain_port,
        credentials.credentials,
        transfers.transfers,
        *(
            partial(peer.peer, each, timeout_s=timeout_s, first_generation=first_generation)
            for each in peers
        ),
    ]


def findings(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run checks; one that fails by itself is a finding too, and the others go on."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = getattr(check, "__name__", "a check").replace("_", " ")
            yield problem(name, f"the check failed: {error!r}", "report this with the whole output")
