"""Rank tables: what is tolerated, what is refused, and which addresses a rank has."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._protocol.rank_table import parse_rank_table

TWO_SERVERS = {
    "version": "1.2",
    "status": "completed",
    "server_count": "2",
    "server_list": [
        {
            "server_id": "192.0.2.1",
            "host_ip": "198.51.100.1",
            "device": [
                {
                    "device_id": "3",
                    "device_ip": "203.0.113.3",
                    "rank_id": "0",
                    "super_device_id": "7",
                }
            ],
        },
        {
            "server_id": "node-b",
            "device": [{"device_id": "0", "device_ip": "2001:db8::1", "rank_id": "1"}],
        },
    ],
    "super_pod_list": [{"super_pod_id": "0", "server_list": [{"server_id": "192.0.2.1"}]}],
}
ONE_SERVER = {
    "version": "1.0",
    "server_list": [
        {
            "server_id": "node-a",
            "device": [
                {"device_id": "0", "device_ip": "192.0.2.10", "rank_id": "0"},
                {"device_id": "1", "device_ip": "", "rank_id": "1"},
                {"device_id": "2", "device_ip": "127.0.0.1", "rank_id": "2"},
            ],
        }
    ],
}


def refused(text: str) -> str:
    with pytest.raises(LLMException) as raised:
        parse_rank_table(text)
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    return str(raised.value)


def test_candidates_come_in_the_order_host_ip_server_id_device_ip():
    table = parse_rank_table(json.dumps(TWO_SERVERS))
    hosts = ("198.51.100.1", "192.0.2.1", "203.0.113.3")
    assert table.addresses(0, 60000) == tuple((host, 60003) for host in hosts)


def test_a_name_is_no_candidate_and_two_servers_have_no_loopback():
    table = parse_rank_table(json.dumps(TWO_SERVERS))
    assert table.addresses(1, 60000) == (("2001:db8::1", 60000),)


def test_one_server_has_loopback_last_and_once():
    table = parse_rank_table(json.dumps(ONE_SERVER))
    assert table.addresses(0, 50000) == (("192.0.2.10", 50000), ("127.0.0.1", 50000))
    assert table.addresses(1, 50000) == (("127.0.0.1", 50001),)
    assert table.addresses(2, 50000) == (("127.0.0.1", 50002),)


@pytest.mark.parametrize(
    "text",
    [
        '{"server_list": [{"device": [{"rank_id": "0",},],},],}',
        '{"server_list": [{"device": [{"rank_id": "0"} , ]\n}\t, ] , }',
    ],
)
def test_trailing_commas_are_tolerated(text):
    assert parse_rank_table(text).addresses(0, 1024) == (("127.0.0.1", 1024),)


def test_commas_within_strings_are_kept():
    server = '{"host_ip": "h,}", "device": [{"rank_id": "0"},]}'
    text = '{"status": "a,]\\",}", "server_list": [' + server + "]}"
    assert parse_rank_table(text).addresses(0, 1024)[0] == ("h,}", 1024)


@pytest.mark.parametrize("text", ["{}", '{"server_list": []}', '{"server_list": [{}]}'])
def test_missing_fields_are_no_errors(text):
    assert parse_rank_table(text).addresses(0, 60000) == ()


def test_a_missing_device_id_is_device_0_and_a_number_is_as_good_as_a_string():
    devices = [{"rank_id": 4}, {"rank_id": "5", "device_id": 6}]
    table = parse_rank_table(json.dumps({"server_list": [{"device": devices}]}))
    assert table.addresses(4, 60000) == (("127.0.0.1", 60000),)
    assert table.addresses(5, 60000) == (("127.0.0.1", 60006),)


@pytest.mark.parametrize("version", ["1.1", "2.0", 1.0, None, "", []])
def test_an_unknown_version_is_refused(version):
    assert "version" in refused(json.dumps({"version": version}))


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[" * 100_000, '{"a": ,}', "{,}x", "\x00"])
def test_what_is_no_json_is_refused(text):
    assert "not JSON" in refused(text)


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null", "[,]"])
def test_what_is_no_object_is_refused(text):
    assert "must be a JSON object" in refused(text)


@pytest.mark.parametrize(
    ("device", "named"),
    [
        ({"rank_id": "x"}, "rank_id"),
        ({"rank_id": "-1"}, "rank_id"),
        ({"rank_id": True}, "rank_id"),
        ({"rank_id": "0", "device_id": "one"}, "device_id"),
        ({"rank_id": "0", "device_id": 1.5}, "device_id"),
        ({"rank_id": "0", "device_ip": 7}, "device_ip"),
        ("0", "device[0]"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(device, named):
    text = refused(json.dumps({"server_list": [{"device": [device]}]}))
    assert named in text
    assert "server_list[0]" in text


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"server_list": {}}, "server_list must be a list"),
        ({"server_list": [3]}, "server_list[0] must be an object"),
        ({"server_list": [{"device": "x"}]}, "server_list[0].device must be a list"),
        ({"server_list": [{"server_id": 3}]}, "server_list[0].server_id"),
        ({"server_list": [{"host_ip": None}]}, "server_list[0].host_ip"),
        ({"server_list": [{"host_ip": "a..b"}]}, "server_list[0].host_ip 'a..b' is neither"),
        (
            {"server_list": [{"device": [{"rank_id": "1"}, {"rank_id": "1"}]}]},
            "rank_id 1 occurs twice",
        ),
    ],
)
def test_a_structure_that_makes_no_sense_is_named(table, named):
    assert named in refused(json.dumps(table))


def test_a_port_beyond_the_last_is_refused():
    devices = [{"rank_id": "0", "device_id": "600"}]
    table = parse_rank_table(json.dumps({"server_list": [{"device": devices}]}))
    assert table.addresses(0, 64000)
    with pytest.raises(LLMException, match="link_base_port"):
        table.addresses(0, 65000)


def status(text: str) -> LLMStatusCode:
    try:
        parse_rank_table(text)
    except LLMException as error:
        return error.status_code
    return LLMStatusCode.LLM_SUCCESS


PARSED_OR_REFUSED = (LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_PARAM_INVALID)


@given(st.text())
def test_any_text_parses_or_is_refused(text):
    assert status(text) in PARSED_OR_REFUSED


FIELDS = ["version", "server_list", "device", "rank_id", "device_id", "host_ip"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
)


@given(json_values)
def test_any_json_parses_or_is_refused(value):
    assert status(json.dumps(value)) in PARSED_OR_REFUSED
