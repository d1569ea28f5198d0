"""Data paths that a run measures, with the contenders of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from llm_datadist.cli.bench.datadist import Datadist, DatadistPool, DatadistTcp
from llm_datadist.cli.bench.limits import BareReadv, BigMemcpy
from llm_datadist.cli.bench.rival_mooncake import Mooncake
from llm_datadist.cli.bench.rival_nixl import PACKAGE, Nixl, NixlTcp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist.cli.bench.contender import Contender

__all__ = ["PATHS", "RIVALS", "DataPath", "check_installed", "remedy_of"]


@dataclass(frozen=True)
class DataPath:
    """A data path.

    Attributes:
        name: Of the path.
        own: The contender of this library.
        rivals: Others, by the names that `--vs` has.
        limit: A limit of the machine that depends on the size of blocks.
        ceiling: A limit that does not.
        has_iperf: Whether iperf3 measures a limit.
        pushes: Whether pushes are measured.
        environment: Variables of the processes.
        expects: Backend that the link should have; empty for any.
        is_remote: Whether the owner is on another host, and learns that a run has ended.
    """

    name: str
    own: type[Contender]
    rivals: Mapping[str, type[Contender]]
    limit: type[Contender] | None = None
    ceiling: type[Contender] | None = None
    has_iperf: bool = False
    pushes: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    expects: str = ""
    is_remote: bool = False


PATHS = {
    each.name: each
    for each in (
        DataPath("same-host", Datadist, {"nixl": Nixl}, BareReadv, BigMemcpy, expects="host"),
        DataPath(
            "pool", DatadistPool, {"nixl": Nixl}, None, BigMemcpy, pushes=False, expects="host"
        ),
        DataPath(
            "tcp",
            DatadistTcp,
            {"nixl": NixlTcp, "mooncake": Mooncake},
            has_iperf=True,
            environment={"UCX_TLS": "tcp"},
        ),
    )
}
"""By name. The path "pool" is that of one host too, from memory that the owner's pool allocated."""

_REMEDIES = {
    "nixl": "pip install --no-deps nixl-cu12 (it needs no GPU)",
    "mooncake": "pip install --no-deps mooncake-transfer-engine-non-cuda, which needs libraries "
    "(Debian: apt install libibverbs1 librdmacm1 libnuma1 liburing2 libcurl4)",
}
RIVALS = tuple(_REMEDIES)


def remedy_of(rival: str) -> str:
    """Return the command that installs a rival."""
    return _REMEDIES[rival]


def check_installed(rival: str) -> None:
    """Check that a rival of `--vs` is installed.

    Raises:
        ValueError: It is unknown, or not installed; with the command that installs it.
    """
    if rival not in RIVALS:
        raise ValueError(f"--vs {rival}: unknown; give one of {', '.join(RIVALS)}")
    is_there = PACKAGE if rival == "nixl" else find_spec("mooncake")
    if is_there is None:
        raise ValueError(f"--vs {rival}: it is not installed: {remedy_of(rival)}")
