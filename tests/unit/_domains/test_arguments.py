"""Arguments of `link`: which mistake raises what."""

import numpy as np
import pytest

from llm_datadist._domains.arguments import check_terms
from llm_datadist._errors import LLMException, LLMStatusCode

TABLE = '{"version": "1.2", "server_list": []}'
PAIR = {7: 0, 9: 1}


@pytest.mark.parametrize(
    ("name", "ranks", "table"),
    [
        (None, PAIR, TABLE),
        (b"x", PAIR, TABLE),
        (1, PAIR, TABLE),
        ("x", None, TABLE),
        ("x", [(7, 0), (9, 1)], TABLE),
        ("x", {"7": 0, 9: 1}, TABLE),
        ("x", {7: "0", 9: 1}, TABLE),
        ("x", {7: 0, 9: 1.0}, TABLE),
        ("x", {7: 0, 9: True}, TABLE),
        ("x", {7: None, 9: 1}, TABLE),
        ("x", PAIR, None),
        ("x", PAIR, b"{}"),
        ("x", PAIR, {"version": "1.2"}),
        ("", {}, None),
    ],
)
def test_wrong_types_are_type_errors(name, ranks, table):
    with pytest.raises(TypeError):
        check_terms(7, name, ranks, table)


@pytest.mark.parametrize(
    ("name", "ranks", "table", "named"),
    [
        ("", PAIR, TABLE, "comm_name has 0 characters"),
        ("x" * 128, PAIR, TABLE, "comm_name has 128 characters"),
        ("\ud800", PAIR, TABLE, "comm_name"),
        ("x", {}, TABLE, "0 entries"),
        ("x", {7: 0}, TABLE, "1 entries"),
        ("x", {7: 0, 1: 1, 2: 2, 3: 3, 4: 4}, TABLE, "5 entries"),
        ("x", {7: 1, 9: 0}, TABLE, "not ascending"),
        ("x", {7: 0, 9: 0}, TABLE, "not ascending"),
        ("x", {8: 0, 9: 1}, TABLE, "cluster id 7"),
        ("x", {7: -1, 9: 0}, TABLE, "cluster_rank_info[7]"),
        ("x", {-7: 0, 7: 1}, TABLE, "cluster id"),
        ("x", {7: 0, 2**64: 1}, TABLE, "cluster id"),
        ("x", PAIR, "", "rank_table"),
        ("x", PAIR, "[]", "rank_table"),
        ("x", PAIR, '{"version": "9"}', "version"),
    ],
)
def test_everything_else_is_param_invalid(name, ranks, table, named):
    with pytest.raises(LLMException) as raised:
        check_terms(7, name, ranks, table)
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("x", PAIR),
        ("x" * 127, PAIR),
        ("domain of β", {7: 3, 2**64 - 1: 8}),
        ("x", {0: 0, 7: 1, 1: 2, 2: 3}),
        ("x", {np.uint64(7): np.int32(0), np.int64(9): np.uint8(1)}),
    ],
)
def test_what_is_right_passes(name, ranks):
    terms = check_terms(7, name, ranks, TABLE)
    assert terms.name == name
    assert list(terms.ranks.items()) == [(int(member), int(rank)) for member, rank in ranks.items()]
    assert {type(number) for pair in terms.ranks.items() for number in pair} == {int}
