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

__all__ = ["PATHS", "RIVALS", "DataPath", "check_installed"]


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
    is_remote: bool = False


PATHS = {
    each.name: each
    for each in (
        DataPath("same-host", Datadist, {"nixl": Nixl}, BareReadv, BigMemcpy),
        DataPath("pool", DatadistPool, {"nixl": Nixl}, None, BigMemcpy, pushes=False),
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

RIVALS = ("nixl", "mooncake")


def check_installed(rival: str) -> None:
    """Check that a rival of `--vs` can be used.

    Raises:
        ValueError: It is unknown, or not installed; with the command that installs it.
    """
    if rival not in RIVALS:
        raise ValueError(f"--vs {rival}: unknown; one of {', '.join(RIVALS)}")
    if rival == "nixl" and PACKAGE is None:
        raise ValueError(
            "--vs nixl: NIXL is not installed: pip install --no-deps nixl-cu12 (it needs no GPU)"
        )
    if rival == "mooncake" and find_spec("mooncake") is None:
        raise ValueError(
            "--vs mooncake: Mooncake is not installed: pip install --no-deps "
            "mooncake-transfer-engine-non-cuda (Debian: also apt install libibverbs1 librdmacm1 "
            "libnuma1 liburing2 libcurl4)"
        )
