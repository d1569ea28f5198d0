"""Check the arguments of `link` and `unlink` before anything has an effect.

Source: api.md 4.6: a wrong type is a TypeError, everything else LLM_PARAM_INVALID.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn, SupportsIndex, final

from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._protocol.rank_table import parse_rank_table
from llm_datadist._types.checks import check_instance, check_str, check_uint64, wrong_type

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist._protocol.rank_table import RankTable

__all__ = ["Terms", "check_comm_id", "check_terms"]

MAX_NAME_CHARACTERS = 127
MIN_MEMBERS = 2
MAX_MEMBERS = 4


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """The terms that the members of a domain must agree on, and where they meet.

    Attributes:
        name: Name of the domain.
        ranks: Cluster id to rank, ranks ascending.
        table: Addresses of the ranks; not compared between members.
    """

    name: str
    ranks: Mapping[int, int]
    table: RankTable


def check_terms(
    cluster_id: int, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str
) -> Terms:
    """Check and return the arguments of `link`.

    Args:
        cluster_id: The instance's own id.
        comm_name: 1..127 characters.
        cluster_rank_info: Cluster id to rank, 2..4 entries, ranks ascending, own id among them.
        rank_table: JSON text.

    Raises:
        TypeError: A wrong type.
        LLMException: LLM_PARAM_INVALID: another error in the arguments.
    """
    check_str("comm_name", comm_name)
    check_instance("cluster_rank_info", cluster_rank_info, dict)
    check_str("rank_table", rank_table)
    ranks = {
        _number("a cluster id of cluster_rank_info", member): _number(
            f"cluster_rank_info[{member!r}]", rank
        )
        for member, rank in cluster_rank_info.items()
    }
    _check_name(comm_name)
    _check_ranks(cluster_id, ranks)
    return Terms(comm_name, ranks, parse_rank_table(rank_table))


def check_comm_id(comm_id: SupportsIndex) -> int:
    """Return a comm id of any value as int.

    Raises:
        TypeError: Not an integer.
    """
    if isinstance(comm_id, bool):
        raise wrong_type("comm_id", comm_id, "int")
    try:
        return operator.index(comm_id)
    except TypeError:
        raise wrong_type("comm_id", comm_id, "int") from None


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        _refuse(
            f"comm_name has {len(name)} characters",
            f"give 1 to {MAX_NAME_CHARACTERS} characters",
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        _refuse(f"comm_name {name!r} is no text ({error.reason})", "give text that UTF-8 can carry")


def _check_ranks(cluster_id: int, ranks: dict[int, int]) -> None:
    if not MIN_MEMBERS <= len(ranks) <= MAX_MEMBERS:
        _refuse(
            f"cluster_rank_info has {len(ranks)} entries",
            f"give {MIN_MEMBERS} to {MAX_MEMBERS} members",
        )
    if any(lower >= higher for lower, higher in pairwise(ranks.values())):
        _refuse(
            f"the ranks of cluster_rank_info {ranks} are not ascending",
            "order the entries by rank and give each rank once",
        )
    if cluster_id not in ranks:
        _refuse(
            f"cluster_rank_info {ranks} does not have this instance's cluster id {cluster_id}",
            "give the ids of all members, including this one",
        )


def _number(name: str, value: SupportsIndex) -> int:
    try:
        return check_uint64(name, value)
    except ValueError as error:
        _refuse(str(error), "give integers in [0, 2**64)")


def _refuse(problem: str, remedy: str) -> NoReturn:
    raise fail(LLMStatusCode.LLM_PARAM_INVALID, "link", problem, remedy)
