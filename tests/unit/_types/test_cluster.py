"""LLMClusterInfo (api.md 4.9)."""

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import LLMClusterInfo, LLMRole

SIDES = ["local", "remote"]


def appended(side, ip, port=26000):
    info = LLMClusterInfo()
    getattr(info, f"append_{side}_ip_info")(ip, port)
    return getattr(info, f"{side}_ip_info_list")


def test_an_unset_cluster_id_is_none_and_not_0():
    """api.md checklist 18."""
    info = LLMClusterInfo()
    assert info.remote_cluster_id is None
    info.remote_cluster_id = 0
    assert info.remote_cluster_id == 0


def test_a_cluster_id_is_uint64():
    """api.md checklist 5 and 18."""
    info = LLMClusterInfo()
    for value in (2**64 - 1, np.uint64(5)):
        info.remote_cluster_id = value
        assert info.remote_cluster_id == value
    for value in (-1, 2**64):
        with pytest.raises(ValueError, match="remote_cluster_id"):
            info.remote_cluster_id = value
    for value in ("1", None, 1.0, True):
        with pytest.raises(TypeError, match="remote_cluster_id"):
            info.remote_cluster_id = value
    assert info.remote_cluster_id == 5


def test_a_role_is_kept():
    info = LLMClusterInfo()
    assert info.remote_role_type is None
    info.remote_role_type = LLMRole.PROMPT
    assert info.remote_role_type is LLMRole.PROMPT
    with pytest.raises(TypeError, match="remote_role_type must be LLMRole"):
        info.remote_role_type = 1


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "ip",
    [
        "192.3.153.208",
        "::1",
        "fe80::1%eth0",
        "2001:db8::ff00:42:8329",
        "localhost",
        "node-7.example.org",
        "a1",
        "my_pod.svc",
    ],
)
def test_an_ip_is_a_literal_or_a_host_name(side, ip):
    assert appended(side, ip) == [(ip, 26000)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("ip", "text"),
    [
        (3499688896, "192.3.153.208"),
        (0, "0.0.0.0"),
        (2**32 - 1, "255.255.255.255"),
        (np.uint32(0x0100007F), "127.0.0.1"),
    ],
)
def test_an_integer_has_the_first_octet_in_its_lowest_byte(side, ip, text):
    assert appended(side, ip) == [(text, 26000)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "ip", ["", "1.2.3.400", "1.2.3", "a b", "[::1]", "::g", "10.0.0.1:80", "-x", "a..b", "1\n"]
)
def test_other_text_is_refused(side, ip):
    """api.md checklist 5."""
    with pytest.raises(LLMException, match="neither an IP address nor a host name") as caught:
        appended(side, ip)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("ip", [None, 1.5, b"1.2.3.4", True, ["1.2.3.4"]])
def test_an_ip_of_another_type_is_a_type_error(side, ip):
    """api.md checklist 5."""
    with pytest.raises(TypeError, match="ip must be str or int"):
        appended(side, ip)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("ip", [-1, 2**32])
def test_an_integer_ip_outside_32_bits_is_a_value_error(side, ip):
    """api.md checklist 5."""
    with pytest.raises(ValueError, match="ip must be in"):
        appended(side, ip)


@pytest.mark.parametrize("side", SIDES)
def test_a_port_is_16_bits(side):
    """api.md checklist 5."""
    for port in (0, 65535):
        assert appended(side, "::1", port) == [("::1", port)]
    for port in (-1, 65536):
        with pytest.raises(ValueError, match="port must be in"):
            appended(side, "::1", port)
    for port in ("1", None, 1.0, True):
        with pytest.raises(TypeError, match="port must be int"):
            appended(side, "::1", port)


def test_addresses_are_kept_in_order_and_given_out_as_copies():
    info = LLMClusterInfo()
    info.append_remote_ip_info("1.1.1.1", 1)
    info.append_remote_ip_info("2.2.2.2", 2)
    info.remote_ip_info_list.clear()
    assert info.remote_ip_info_list == [("1.1.1.1", 1), ("2.2.2.2", 2)]
    assert info.local_ip_info_list == []


def test_the_constructor_takes_nothing():
    with pytest.raises(TypeError):
        LLMClusterInfo(1)


def test_a_cluster_prints_its_fields():
    """api.md checklist 61."""
    info = LLMClusterInfo()
    info.remote_cluster_id = 3
    info.append_local_ip_info("1.1.1.1", 1)
    info.append_remote_ip_info("2.2.2.2", 2)
    assert repr(info) == (
        "LLMClusterInfo(remote_cluster_id=3, remote_role_type=None, "
        "local_ip_info_list=[('1.1.1.1', 1)], remote_ip_info_list=[('2.2.2.2', 2)])"
    )
