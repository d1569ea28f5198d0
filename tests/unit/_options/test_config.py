"""LLMConfig (api.md 3, checklist 7)."""

import copy

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._options import LLMConfig
from llm_datadist._options.parse import parse_options
from llm_datadist.configs import LLMConfig as Exported
from llm_datadist.configs import LlmConfig

STRINGS = {
    "listen_ip_info": "llm.listenIpInfo",
    "mem_pool_cfg": "llm.MemPoolConfig",
    "host_mem_pool_cfg": "llm.HostMemPoolConfig",
    "local_comm_res": "llm.LocalCommRes",
    "transfer_backend": "llm.TransferBackend",
    "global_resource_config": "llm.GlobalResourceConfig",
    "buf_pool_cfg": "llm.BufPoolCfg",
    "cluster_info": "llm.ClusterInfo",
    "deploy_res_path": "ge.resourceConfigPath",
    "output_max_size": "llm.OutputMaxSize",
    "link_secret": "llm.LinkSecret",
    "device": "llm.Device",
    "gpu_copy": "llm.GpuCopy",
    "checksum": "llm.Checksum",
    "huge_pages": "llm.HugePages",
    "nixl_backend": "llm.NixlBackend",
    "nixl_params": "llm.NixlParams",
    "tls_cert": "llm.TlsCert",
    "tls_key": "llm.TlsKey",
    "tls_ca": "llm.TlsCa",
}
SWITCHES = {
    "enable_cache_manager": "llm.EnableCacheManager",
    "enable_remote_cache_accessible": "llm.EnableRemoteCacheAccessible",
    "enable_switch_role": "llm.EnableSwitchRole",
    "auto_relink": "llm.AutoRelink",
    "strict_backend": "llm.StrictBackend",
    "tls_lanes": "llm.TlsLanes",
    "allow_anonymous": "llm.AllowAnonymous",
}
INTEGERS = {
    "link_total_time": ("llm.LinkTotalTime", 0, 2**32 - 1),
    "link_retry_count": ("llm.LinkRetryCount", 1, 100),
    "max_registered_addrs": ("llm.MaxRegisteredAddrs", 1, None),
    "link_base_port": ("llm.LinkBasePort", 1024, 65000),
    "rdma_traffic_class": ("llm.RdmaTrafficClass", None, None),
    "rdma_service_level": ("llm.RdmaServiceLevel", None, None),
    "transfer_threads": ("llm.TransferThreads", 1, 256),
    "lanes_per_link": ("llm.LanesPerLink", 1, 64),
    "heartbeat_ms": ("llm.HeartbeatMs", 0, 3_600_000),
    "peer_timeout_ms": ("llm.PeerTimeoutMs", 100, 86_400_000),
    "slow_transfer_ms": ("llm.SlowTransferMs", 1, 2**32 - 1),
}
OTHERS = {"device_id", "sync_kv_timeout", "mem_utilization"}
EVERY = {*STRINGS, *SWITCHES, *INTEGERS, *OTHERS}
BOUNDS = [
    (name, bound, step)
    for name, (_, low, high) in INTEGERS.items()
    for bound, step in ((low, -1), (high, 1))
    if bound is not None
]


def options_with(name, value):
    config = LLMConfig()
    setattr(config, name, value)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
    return config.generate_options()


@pytest.mark.parametrize("name", sorted(EVERY))
def test_an_unset_property_is_none_and_absent(name):
    config = LLMConfig()
    assert getattr(config, name) is None
    assert config.generate_options() == {}


@pytest.mark.parametrize(("name", "key"), STRINGS.items())
@pytest.mark.parametrize("value", ["", "text", '{"a": [1]}'])
def test_text_is_passed_as_given_and_empty_is_not_unset(name, key, value):
    """api.md checklist 7 and 9."""
    assert options_with(name, value) == {key: value}


@pytest.mark.parametrize(("name", "key"), SWITCHES.items())
@pytest.mark.parametrize(("value", "text"), [(True, "1"), (False, "0")])
def test_a_switch_is_1_or_0(name, key, value, text):
    assert options_with(name, value) == {key: text}


@pytest.mark.parametrize(("name", "bound"), [(name, bound) for name, bound, _ in BOUNDS])
def test_an_integer_is_written_in_decimal(name, bound):
    assert options_with(name, bound) == {INTEGERS[name][0]: str(bound)}


@pytest.mark.parametrize(("name", "bound", "step"), BOUNDS)
def test_an_integer_out_of_range_is_a_value_error(name, bound, step):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        setattr(LLMConfig(), name, bound + step)


@pytest.mark.parametrize("name", ["rdma_traffic_class", "rdma_service_level"])
@pytest.mark.parametrize("value", [-1, 0, 7, 133, 2**40])
def test_an_rdma_number_is_checked_for_its_type_only(name, value):
    assert options_with(name, value) == {INTEGERS[name][0]: str(value)}


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("value", [None, 1, b"x", {}, True])
def test_text_of_another_type_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"{name} must be str"):
        setattr(LLMConfig(), name, value)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [None, 1, 0, "1", np.True_])
def test_a_switch_of_another_type_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"{name} must be bool"):
        setattr(LLMConfig(), name, value)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [None, 1.0, "1", True, [1]])
def test_an_integer_of_another_type_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"{name} must be int"):
        setattr(LLMConfig(), name, value)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (0, {"ge.exec.deviceId": "0"}),
        (7, {"ge.exec.deviceId": "7"}),
        ([0, 1], {"ge.exec.deviceId": "0;1", "ge.session_device_id": "0"}),
        ((3, 2), {"ge.exec.deviceId": "3;2", "ge.session_device_id": "3"}),
        ([5], {"ge.exec.deviceId": "5", "ge.session_device_id": "5"}),
    ],
)
def test_devices_are_one_or_a_list(value, options):
    assert options_with("device_id", value) == options


@pytest.mark.parametrize("value", [None, "0", 1.0, True, ["0"], [None], [True], {0}])
def test_devices_of_another_type_are_a_type_error(value):
    with pytest.raises(TypeError, match="device_id"):
        LLMConfig().device_id = value


@pytest.mark.parametrize("value", [-1, [-1], [0, -1], (), []])
def test_devices_out_of_range_are_a_value_error(value):
    with pytest.raises(ValueError, match="device_id"):
        LLMConfig().device_id = value


@pytest.mark.parametrize("value", [1, 1000, "1", "1000", "0005"])
def test_a_timeout_is_a_number_or_its_text(value):
    assert options_with("sync_kv_timeout", value) == {"llm.SyncKvCacheWaitTime": str(value)}


@pytest.mark.parametrize("value", [0, -1, 2**32, "0", "-1", "1.5", "", "abc", " 1", "1_0", "٣"])
def test_a_timeout_that_is_no_positive_number_is_a_value_error(value):
    with pytest.raises(ValueError, match="sync_kv_timeout"):
        LLMConfig().sync_kv_timeout = value


@pytest.mark.parametrize("value", [None, 1.5, True, [1], b"1"])
def test_a_timeout_of_another_type_is_a_type_error(value):
    with pytest.raises(TypeError, match="sync_kv_timeout must be int or decimal str"):
        LLMConfig().sync_kv_timeout = value


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0"), (1.0, "1.0"), (0.95, "0.95"), (1e-5, "0.00001")]
)
def test_a_utilization_is_written_in_decimal(value, text):
    assert options_with("mem_utilization", value) == {"llm.MemUtilization": text}


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), 2])
def test_a_utilization_out_of_range_is_an_llm_exception(value):
    with pytest.raises(LLMException, match="mem_utilization") as caught:
        LLMConfig().mem_utilization = value
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize("value", [None, "0.5", True])
def test_a_utilization_of_another_type_is_a_type_error(value):
    with pytest.raises(TypeError, match="mem_utilization must be float"):
        LLMConfig().mem_utilization = value


def test_ge_options_are_live_and_merged_in_last():
    config = LLMConfig()
    assert config.ge_options == {}
    config.link_retry_count = 5
    config.ge_options["ge.flowGraphMemMaxSize"] = "1024"
    config.ge_options["llm.LinkRetryCount"] = "9"
    assert config.generate_options() == {
        "ge.flowGraphMemMaxSize": "1024",
        "llm.LinkRetryCount": "9",
    }
    assert LLMConfig().ge_options == {}


def test_ge_options_can_be_set():
    config = LLMConfig()
    given = {"a": "b"}
    config.ge_options = given
    assert config.ge_options is given
    assert config.generate_options() == {"a": "b"}


@pytest.mark.parametrize("value", [None, "a", [("a", "b")], {"a": 1}, {1: "a"}])
def test_ge_options_of_other_types_are_a_type_error(value):
    config = LLMConfig()
    with pytest.raises(TypeError, match="ge_options"):
        config.ge_options = value
    assert config.ge_options == {}


def test_ge_options_that_were_spoilt_in_place_are_found():
    config = LLMConfig()
    config.ge_options["a"] = 1
    with pytest.raises(TypeError, match="ge_options"):
        config.generate_options()


def test_options_are_a_new_dictionary_of_text_each_time():
    config = LLMConfig()
    config.device_id = 1
    config.generate_options()["ge.exec.deviceId"] = "2"
    assert config.generate_options() == config.gen_options() == {"ge.exec.deviceId": "1"}


def test_a_property_can_be_set_again_and_a_failure_keeps_the_earlier_value():
    config = LLMConfig()
    config.link_retry_count = 2
    config.link_retry_count = 3
    with pytest.raises(ValueError, match="link_retry_count"):
        config.link_retry_count = 0
    assert config.link_retry_count == 3


def test_configs_are_independent_also_when_copied():
    one, other = LLMConfig(), LLMConfig()
    one.device_id = 1
    copied = copy.copy(one)
    copied.device_id = 2
    assert (one.device_id, other.device_id, copied.device_id) == (1, None, 2)


def test_the_constructor_takes_nothing():
    with pytest.raises(TypeError):
        LLMConfig(1)


def test_both_spellings_are_one_class():
    """api.md checklist 1."""
    assert LlmConfig is Exported is LLMConfig


def test_every_property_is_documented():
    for name in EVERY:
        assert len(getattr(LLMConfig, name).__doc__) > 10


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("link_total_tme", "link_total_time"),
        ("LinkTotalTime", "link_total_time"),
        ("enable_cachemanager", "enable_cache_manager"),
        ("ge_option", "ge_options"),
        ("listen_ip_infos", "listen_ip_info"),
    ],
)
def test_a_misspelled_option_is_refused_with_the_nearest_name(name, nearest):
    """An extension: it would be lost without a word."""
    config = LLMConfig()
    with pytest.raises(
        AttributeError, match=f"no option '{name}', did you mean '{nearest}'"
    ) as error:
        setattr(config, name, "1")
    assert (error.value.name, error.value.obj) == (name, config)
    assert config.generate_options() == {}


def test_an_option_that_resembles_none():
    with pytest.raises(AttributeError, match="no option 'shade' "):
        LLMConfig().shade = "red"


def test_printing_hides_the_secret_wherever_it_is():
    """api.md checklist 61."""
    config = LLMConfig()
    assert repr(config) == "LLMConfig()"
    config.link_secret = "hunter2"
    config.ge_options.update({"llm.LinkSecret": "hunter2", "a": "b"})
    config.device_id = [0, 1]
    assert "hunter2" not in str(config)
    assert str(config) == (
        "LLMConfig(device_id=[0, 1], link_secret='***', "
        "ge_options={'llm.LinkSecret': '***', 'a': 'b'})"
    )


def test_what_a_config_generates_parses():
    """api.md checklist 7: both ends agree on keys and values."""
    config = LLMConfig()
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    config.enable_switch_role = True
    config.device_id = [2, 3]
    config.sync_kv_timeout = "5000"
    config.listen_ip_info = "[::1]:26000"
    config.mem_pool_cfg = config.host_mem_pool_cfg = '{"memory_size": 65536}'
    config.local_comm_res = config.global_resource_config = ""
    config.mem_utilization = 1e-5
    config.transfer_backend, config.device, config.link_secret = "tcp", "cpu", "s"
    config.checksum = "crc32c"
    config.huge_pages = "advise"
    for name, value in zip(INTEGERS, (7, 9, 241, 2000, 8, 3, 5, 6, 70, 200, 40), strict=True):
        setattr(config, name, value)
    parsed = parse_options(config.generate_options(), {})
    assert (parsed.device_ids, parsed.sync_timeout_ms) == ((2, 3), 5000)
    assert parsed.listen == ("::1", 26000)
    assert parsed.remote_accessible is parsed.switch_role is True
    assert parsed.device_pool == parsed.host_pool
    assert (parsed.backend, parsed.device, parsed.secret) == ("tcp", "cpu", b"s")
    assert (parsed.link_total_time_s, parsed.link_retry_count) == (7, 9)
    assert (parsed.max_registered_addrs, parsed.link_base_port) == (241, 2000)
    assert (parsed.rdma_traffic_class, parsed.rdma_service_level) == (8, 3)
    assert (parsed.transfer_threads, parsed.lanes_per_link) == (5, 6)
    assert (parsed.heartbeat_ms, parsed.peer_timeout_ms) == (70, 200)
    assert parsed.slow_transfer_ms == 40
    assert parsed.auto_relink is True
    assert (parsed.checksum, parsed.huge_pages) == ("crc32c", "advise")
