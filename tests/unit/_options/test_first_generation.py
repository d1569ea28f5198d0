"""Options of first-generation mode (api.md 8, checklist 62)."""

import os

import pytest

from llm_datadist import LLMConfig
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._options.parse import parse_options, parse_switch_options
from llm_datadist._options.settings import Config, Pool

S = LLMStatusCode
SIZE = "ge.flowGraphMemMaxSize"


def refused(options, *texts):
    with pytest.raises(LLMException) as caught:
        parse_options(options, {})
    assert caught.value.status_code is S.LLM_PARAM_INVALID
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{}, {"llm.EnableCacheManager": "0"}, LLMConfig().generate_options(), {"llm.Role": "Decoder"}],
)
def test_options_without_the_cache_manager_select_it(options):
    config = parse_options(options, {})
    assert config.cache_manager is False
    assert config.shared_pool is not None
    assert config.statuses == {
        S.LLM_TIMEOUT: S.LLM_WAIT_PROCESS_TIMEOUT,
        S.LLM_OUT_OF_MEMORY: S.LLM_DEVICE_OUT_OF_MEMORY,
    }


@pytest.mark.parametrize("options", [{"llm.EnableCacheManager": "1"}, {"llm.LocalCommRes": ""}])
def test_the_cache_manager_has_neither_its_pool_nor_its_statuses(options):
    config = parse_options(options | {SIZE: "1048576"}, {})
    assert config.cache_manager is True
    assert config.shared_pool is None
    assert config.statuses == {}


@pytest.mark.parametrize(
    ("size", "utilization", "expected"),
    [
        ("4226252800", None, 4014940160),
        ("1000", "1", 1000),
        ("1000", "0.5", 500),
        ("1000", "0", 0),
        ("0", None, 0),
        ("999", "0.00001", 0),
    ],
)
def test_the_pool_has_a_fraction_of_the_size(size, utilization, expected):
    options = {SIZE: size}
    if utilization is not None:
        options["llm.MemUtilization"] = utilization
    assert parse_options(options, {}).shared_pool.memory_size == expected


def test_without_a_size_the_pool_has_half_of_the_memory():
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for options in ({}, {"llm.MemUtilization": "0.1"}):
        assert parse_options(options, {}).shared_pool.memory_size == installed // 2


def test_the_pools_of_the_cache_manager_are_not_made():
    pool = '{"memory_size": 65536}'
    config = parse_options({"llm.MemPoolConfig": pool, "llm.HostMemPoolConfig": pool}, {})
    assert config.device_pool is config.host_pool is None
    assert isinstance(config.shared_pool, Pool)


@pytest.mark.parametrize("text", ["{}", '{"buf_cfg": [{"total_size": 2097152}]}'])
def test_buffer_pools_have_no_effect(text):
    assert parse_options({"llm.BufPoolCfg": text}, {}) == parse_options({}, {})


@pytest.mark.parametrize("text", ["", "[]", "[1]", "{", "1", "null", "'{}'"])
def test_buffer_pools_are_a_json_object(text):
    refused({"llm.BufPoolCfg": text}, "llm.BufPoolCfg")


def test_a_server_may_listen_at_several_addresses():
    text = "127.0.0.1:1;127.0.0.2:2;[::1]:3"
    config = parse_options({"llm.listenIpInfo": text}, {})
    assert config.listen == ("127.0.0.1", 1)
    assert config.more_listen == (("127.0.0.2", 2), ("::1", 3))
    found = parse_switch_options(config, {"llm.listenIpInfo": text})
    assert found == [config.listen, *config.more_listen]
    assert parse_switch_options(config, {}) == []


@pytest.mark.parametrize("text", ["127.0.0.1:1;", ";127.0.0.1:1", "127.0.0.1:1,127.0.0.1:2", "a;b"])
def test_each_of_the_addresses_is_checked(text):
    refused({"llm.listenIpInfo": text}, "llm.listenIpInfo")
    with pytest.raises(LLMException, match="listenIpInfo"):
        parse_switch_options(Config(cache_manager=False), {"llm.listenIpInfo": text})


def test_the_deadline_of_a_pull_is_text():
    assert parse_options({"llm.SyncKvCacheWaitTime": "2500"}, {}).sync_timeout_ms == 2500
    with pytest.raises(TypeError, match=r"llm\.SyncKvCacheWaitTime must be str"):
        parse_options({"llm.SyncKvCacheWaitTime": 2500}, {})
