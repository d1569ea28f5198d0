"""Options whose text is JSON (api.md 3, checklist 8 and 9)."""

import json

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._options.parse import parse_options
from llm_datadist._options.settings import Pool

MANAGED = {"llm.EnableCacheManager": "1"}
HIXL = MANAGED | {"llm.TransferBackend": "hixl", "llm.listenIpInfo": "127.0.0.1:26000"}
NOT_OBJECTS = ["[]", '[{"memory_size": 65536}]', "1", '"text"', "null", "true"]
NOT_JSON = ["{", "x", "{'a': 1}", "[" * 100_000, '{"memory_size": ' + "9" * 5000 + "}"]

POOLS = pytest.mark.parametrize(
    ("key", "field"),
    [("llm.MemPoolConfig", "device_pool"), ("llm.HostMemPoolConfig", "host_pool")],
)


def refused(options, *texts):
    with pytest.raises(LLMException) as caught:
        parse_options(options, {})
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    for text in texts:
        assert text in str(caught.value)


def global_config(value):
    return HIXL | {"llm.GlobalResourceConfig": value if isinstance(value, str) else dumped(value)}


def dumped(value):
    return json.dumps(value)


@POOLS
@pytest.mark.parametrize(
    ("value", "pool"),
    [
        ({"memory_size": 65536}, Pool(65536, 16)),
        ({"memory_size": 2**40, "page_shift": 30}, Pool(2**40, 30)),
        ({"memory_size": 1024, "page_shift": 10}, Pool(1024, 10)),
        ({"memory_size": 65537, "else": [1]}, Pool(65537, 16)),
    ],
)
def test_a_pool_has_a_size_and_a_page(key, field, value, pool):
    config = parse_options(MANAGED | {key: dumped(value)}, {})
    assert getattr(config, field) == pool
    other = {"device_pool": "host_pool", "host_pool": "device_pool"}[field]
    assert getattr(config, other) is None


@POOLS
@pytest.mark.parametrize("text", ["", *NOT_OBJECTS, *NOT_JSON])
def test_a_pool_is_a_json_object(key, field, text):
    refused(MANAGED | {key: text}, key)


@POOLS
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "memory_size"),
        ({"page_shift": 16}, "memory_size"),
        *(
            ({"memory_size": size}, "memory_size")
            for size in (0, -1, 1.0, "65536", None, True, 2**63, 65535)
        ),
        *(
            ({"memory_size": 2**40, "page_shift": shift}, "page_shift")
            for shift in (9, 31, -1, 16.0, "16", None, True)
        ),
    ],
)
def test_sizes_and_pages_are_checked(key, field, value, text):
    refused(MANAGED | {key: dumped(value)}, key, text)


@pytest.mark.parametrize(
    "value",
    [
        {"version": "1.3"},
        {"version": "1.3", "net_instance_id": "a", "endpoint_list": [{"protocol": "roce"}]},
        {"version": "1.0", "status": "completed", "server_list": []},
        {"version": "1.2", "server_count": "1", "server_list": [{"server_id": "a", "device": []}]},
    ],
)
def test_local_comm_res_of_a_known_version_is_carried(value):
    """api.md checklist 9."""
    text = dumped(value)
    assert parse_options({"llm.LocalCommRes": text}, {}).local_comm_res == text


@pytest.mark.parametrize("text", [*NOT_OBJECTS, *NOT_JSON, " "])
def test_local_comm_res_is_a_json_object_or_empty(text):
    """api.md checklist 9."""
    refused({"llm.LocalCommRes": text}, "llm.LocalCommRes")


@pytest.mark.parametrize("value", [{}, *({"version": v} for v in ("1.1", "2.0", 1.3, None, [1]))])
def test_local_comm_res_of_another_version_is_refused(value):
    """api.md checklist 9."""
    refused({"llm.LocalCommRes": dumped(value)}, "llm.LocalCommRes", "version")


@pytest.mark.parametrize("text", [*NOT_OBJECTS, *NOT_JSON, '{"connect_pool": 1}'])
def test_global_resources_are_looked_at_with_hixl_only(text):
    refused(global_config(text), "llm.GlobalResourceConfig")
    config = parse_options(MANAGED | {"llm.GlobalResourceConfig": text}, {})
    assert config.global_resource_config == text


@pytest.mark.parametrize("text", ["", "{}", '{"unknown": 1, "unknown.item": 2}'])
def test_global_resources_may_be_empty_or_unknown(text):
    assert parse_options(global_config(text), {}).global_resource_config == text


KNOWN = {
    "comm_resource_config.listen_port": ([1, 65535, "1", "65535"], [0, 65536, "0", "x", 1.0, None]),
    "comm_resource_config.qos": ([0, 7, "0", "7"], [-1, 8, "-1", "8", 1.0, "1.0", "", True, None]),
    "comm_resource_config.max_active_channels": ([1, 10**6, "1"], [0, -1, "0", 1.5, "9" * 20]),
    "comm_resource_config.protocol_desc": (
        ["roce:device", ["roce:device", "ub_ctp:host"], [], "roce", ["roce", "ub_ctp:host"]],
        [1, None, "", ":", "roce:", ":device", "a:b:c", [""], [1], {"roce": "device"}],
    ),
    "connect_pool.thread_num": ([1, 64, "64"], [0, 65, "65", "+1", " 1", "1e1", "\u0661", True]),
    "connect_pool.task_queue_capacity": ([1, 65535, "65535"], [0, 65536, "65536"]),
    "channel_pool.max_channel": ([1, 512, "512"], [0, 513, "513"]),
    "fabric_memory.max_capacity": ([1, 1024, "1024"], [0, 1025, "1025"]),
    "fabric_memory.start_address": ([0, 1024, "0"], [-1, 1025, "1025"]),
    "fabric_memory.task_stream_num": ([1, 8, "8"], [0, 9, "9"]),
    "fabric_memory.enable_aicpu_unfold": ([True, False], [0, 1, "1", "true", None]),
}
CASES = [
    (name, value, place == 0)
    for name, sides in KNOWN.items()
    for place, values in enumerate(sides)
    for value in values
]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("name", "value", "is_valid"), CASES)
def test_known_items_are_checked_nested_or_dotted(name, value, is_valid, nested):
    section, item = name.split(".")
    options = global_config({section: {item: value}} if nested else {name: value})
    if is_valid:
        assert parse_options(options, {})
    else:
        refused(options, "llm.GlobalResourceConfig", name)


@pytest.mark.parametrize(
    ("high", "low", "is_valid"),
    [
        (0.8, 0.2, True),
        (0.2, 0.8, False),
        (0.5, 0.5, False),
        (0.5, None, False),
        (None, 0.5, False),
        (1.0, 0.5, False),
        (0.5, 0.0, False),
        (1, 0.5, False),
        ("0.8", 0.2, True),
        ("0.8", ".25", True),
        ("0.2", "0.8", False),
        ("1", "0.5", False),
        ("1.0", "0.5", False),
        ("x", "0.5", False),
    ],
)
def test_waterlines_come_in_pairs_in_order(high, low, is_valid):
    pool = {"high_waterline": high, "low_waterline": low}
    pool = {name: value for name, value in pool.items() if value is not None}
    options = global_config({"channel_pool": pool})
    if is_valid:
        assert parse_options(options, {})
    else:
        refused(options, "channel_pool", "waterline")
