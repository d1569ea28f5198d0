"""kv_connector_extra_config: what is accepted, and what each error tells to write."""

from __future__ import annotations

import pytest

from llm_datadist.integrations.vllm.options import parse_extra_config


def test_defaults_are_usable():
    options = parse_extra_config({})
    assert options.listen_address(3) == "127.0.0.1:0"
    assert options.mode == "pull"
    assert options.lease_ms > options.transfer_timeout_ms


def test_everything_given():
    given = {
        "listen": "192.0.2.7:7000",
        "secret": "s3cret",
        "transfer_backend": "tcp",
        "checksum": "crc32c",
        "mode": "pull",
        "model_id": "m",
        "hold_ms": 1000,
        "lease_ms": 900,
        "transfer_timeout_ms": 800,
        "link_timeout_ms": 700,
        "concurrent_loads": 2,
    }
    options = parse_extra_config(given)
    assert {name: getattr(options, name) for name in given} == given
    assert [options.listen_address(rank) for rank in (0, 3)] == ["192.0.2.7:7000", "192.0.2.7:7003"]


def test_the_engine_id_that_others_put_there_is_left_alone():
    assert parse_extra_config({"engine_id": "x"}) == parse_extra_config({})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"lease": 5}, 'unknown key "lease"; did you mean "lease_ms"\\?'),
        ({"lease_ms": "5"}, "\"lease_ms\" is '5'.*whole number from 100 to 3600000"),
        ({"lease_ms": 1}, '"lease_ms" is 1; write a whole number'),
        ({"concurrent_loads": 0}, "from 1 to 64"),
        ({"concurrent_loads": True}, "from 1 to 64"),
        ({"lease_ms": 1000, "transfer_timeout_ms": 1000}, "lease_ms above transfer_timeout_ms"),
        ({"listen": "7000"}, 'write "ip:port"'),
        ({"listen": "host:"}, 'write "ip:port"'),
        ({"listen": "1.2.3.4:70000"}, 'write "ip:port"'),
        ({"listen": "0.0.0.0:0"}, "tells consumers no address"),
        ({"listen": "[::]:0"}, "tells consumers no address"),
        ({"transfer_backend": "rdma"}, 'write "auto", "host", "tcp" or "nixl"'),
        ({"checksum": True}, 'write "off" or "crc32c"'),
        ({"mode": "both"}, 'write "pull" or "push"'),
        ({"secret": ""}, "the text that all engines share"),
    ],
)
def test_errors_say_what_to_write(given, text):
    with pytest.raises(ValueError, match=text) as caught:
        parse_extra_config(given)
    assert str(caught.value).startswith("kv_connector_extra_config: ")
