"""Option dictionary and environment (api.md 3, 4.2, 4.7)."""

import os

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._options.parse import parse_options, parse_switch_options
from llm_datadist._options.settings import Config

MANAGED = {"llm.EnableCacheManager": "1"}
HIXL = MANAGED | {"llm.TransferBackend": "hixl", "llm.listenIpInfo": "127.0.0.1:26000"}


def parse(environ=None, /, **options):
    """Parse with the cache manager on; keywords are option keys without their prefix llm."""
    return parse_options(MANAGED | {f"llm.{k}": v for k, v in options.items()}, environ or {})


def refused(options, *texts, environ=None, status=LLMStatusCode.LLM_PARAM_INVALID):
    with pytest.raises(LLMException) as caught:
        parse_options(options, environ or {})
    assert caught.value.status_code is status
    assert caught.value.operation == "init"
    for text in texts:
        assert text in str(caught.value)


def test_nothing_set_means_the_documented_defaults():
    """api.md checklist 7."""
    assert parse() == Config(
        device_ids=(0,),
        sync_timeout_ms=1000,
        listen=None,
        cache_manager=True,
        remote_accessible=False,
        device_pool=None,
        host_pool=None,
        local_comm_res=None,
        link_total_time_s=120,
        link_retry_count=1,
        rdma_traffic_class=132,
        rdma_service_level=4,
        backend="auto",
        is_hixl=False,
        global_resource_config=None,
        switch_role=False,
        max_registered_addrs=240,
        link_base_port=60000,
        secret=None,
        tls=None,
        device="auto",
        gpu_copy="auto",
        transfer_threads=None,
        lanes_per_link=4,
        heartbeat_ms=1000,
        peer_timeout_ms=10_000,
        auto_relink=True,
        slow_transfer_ms=None,
        checksum="off",
        huge_pages="off",
        nixl_backend="UCX",
        nixl_params={},
        strict_backend=False,
        shared_pool=None,
        more_listen=(),
    )


@pytest.mark.parametrize("options", [None, [], "a", [("llm.EnableCacheManager", "1")], {1: "1"}])
def test_options_are_a_dictionary_of_text(options):
    """api.md checklist 5."""
    with pytest.raises(TypeError, match="options"):
        parse_options(options, {})


@pytest.mark.parametrize(
    "key",
    [
        "ge.exec.deviceId",
        "ge.flowGraphMemMaxSize",
        "llm.SyncKvCacheWaitTime",
        "llm.listenIpInfo",
        "llm.EnableCacheManager",
        "llm.EnableRemoteCacheAccessible",
        "llm.MemPoolConfig",
        "llm.HostMemPoolConfig",
        "llm.LocalCommRes",
        "llm.LinkTotalTime",
        "llm.TransferBackend",
        "llm.GlobalResourceConfig",
        "llm.LinkSecret",
        "llm.MemUtilization",
        "llm.Device",
    ],
)
@pytest.mark.parametrize("value", [1, None, {}, True, 1.5])
def test_a_known_option_must_be_text(key, value):
    """api.md checklist 5."""
    with pytest.raises(TypeError, match=f"option {key} must be str"):
        parse_options(MANAGED | {key: value}, {})


@pytest.fixture
def unlogged(monkeypatch):
    """Forget which keys were logged before."""
    monkeypatch.setattr("llm_datadist._options.unknown_keys._logged", set())


@pytest.mark.expects_log("option llm.SyncKvCacheWaitTimes is unknown and ignored")
@pytest.mark.usefixtures("unlogged")
def test_a_misspelled_key_is_logged_once_with_the_nearest_one(caplog):
    for _ in range(2):
        parse(SyncKvCacheWaitTimes="5")
    (record,) = caplog.records
    assert "did you mean llm.SyncKvCacheWaitTime?" in record.getMessage()
    assert record.levelname == "WARNING"


@pytest.mark.usefixtures("unlogged")
def test_other_unknown_keys_are_no_warnings(caplog):
    caplog.set_level("INFO", "llm_datadist")
    parse_options(MANAGED | {"llm.Role": "1", "llm.Whatever": "1", "ge.exec.rankIds": "0"}, {})
    assert [record.getMessage() for record in caplog.records] == [
        "init: option llm.Whatever is unknown and ignored"
    ]


def test_unknown_keys_are_ignored_and_nothing_is_changed():
    """api.md checklist 10."""
    options = MANAGED | {
        "llm.Role": "Prompt",
        "llm.ClusterInfo": "not json",
        "ge.resourceConfigPath": "/nowhere",
        "ge.exec.rankId": "x",
        "llm.Foo": "1",
        "anything": 3,
    }
    before = dict(options)
    assert parse_options(options, {}) == parse()
    assert options == before


@pytest.mark.parametrize("value", ["1.23", "-1", "1,2", "", "a", " 1", str(2**64)])
def test_the_flow_graph_size_is_a_number_of_bytes(value):
    refused(MANAGED | {"ge.flowGraphMemMaxSize": value}, "ge.flowGraphMemMaxSize")
    refused({"ge.flowGraphMemMaxSize": value}, "ge.flowGraphMemMaxSize")
    assert parse_options(MANAGED | {"ge.flowGraphMemMaxSize": "1024"}, {})


@pytest.mark.parametrize("options", [{}, MANAGED])
@pytest.mark.parametrize("text", ["", '{"version": "1.3"}'])
def test_local_comm_res_selects_the_cache_manager_and_remote_access(options, text):
    """api.md checklist 9: "" is not "unset"."""
    config = parse_options(options | {"llm.LocalCommRes": text}, {})
    assert config.cache_manager is config.remote_accessible is config.local_comm_res_given is True
    assert config.local_comm_res == text
    assert parse().local_comm_res_given is False


@pytest.mark.parametrize("key", ["llm.EnableCacheManager", "llm.EnableRemoteCacheAccessible"])
def test_what_local_comm_res_turns_on_may_not_be_off_with_it(key):
    """api.md checklist 9."""
    options = {"llm.LocalCommRes": "", key: "0"}
    refused(options, key, "llm.LocalCommRes")
    options[key] = "1"
    config = parse_options(options, {})
    assert config.remote_accessible is config.cache_manager is True


@pytest.mark.parametrize(("text", "value"), [("1", True), ("0", False)])
def test_a_switch_is_1_or_0(text, value):
    assert parse(EnableRemoteCacheAccessible=text).remote_accessible is value
    assert parse(EnableSwitchRole=text).switch_role is value


@pytest.mark.parametrize("key", ["EnableCacheManager", "EnableRemoteCacheAccessible"])
@pytest.mark.parametrize("text", ["", "true", "2", "on"])
def test_other_text_is_no_switch(key, text):
    refused(MANAGED | {f"llm.{key}": text}, f"llm.{key}")


@pytest.mark.parametrize(
    ("text", "devices"), [("0", (0,)), ("0;1", (0, 1)), ("3;2;7", (3, 2, 7)), ("2147483647",) * 2]
)
def test_devices_are_numbers_between_semicolons(text, devices):
    config = parse_options(MANAGED | {"ge.exec.deviceId": text}, {})
    assert config.device_ids == (devices if isinstance(devices, tuple) else (int(devices),))


@pytest.mark.parametrize(
    "text", ["", "a", "-1", "0;", ";0", "0,1", "1.0", "2147483648", "9" * 5000]
)
def test_other_text_names_no_devices(text):
    refused(MANAGED | {"ge.exec.deviceId": text}, "ge.exec.deviceId")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.0.1:26000", ("192.168.0.1", 26000)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[2001:db8:0::1]:1", ("2001:db8::1", 1)),
    ],
)
def test_a_listen_address_is_ip_and_port(text, address):
    assert parse(listenIpInfo=text).listen == address
    assert parse_switch_options(Config(), {"llm.listenIpInfo": text, "x": 1}) == [address]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.2.3.4",
        "1.2.3.4:",
        ":1",
        "1.2.3.4:65536",
        "1.2.3.4:-1",
        "1.2.3.400:1",
        "localhost:1",
        "::1:1",
        "[::1]",
        "[1.2.3.4]:1",
        "[::g]:1",
        "1.2.3.4:1;1.2.3.5:1",
        "1.2.3.4:1 ",
        "1.2.3.4:٣",
    ],
)
def test_other_text_is_no_listen_address(text):
    refused(MANAGED | {"llm.listenIpInfo": text}, "llm.listenIpInfo", repr(text))
    with pytest.raises(LLMException, match=r"switch_role.*llm\.listenIpInfo") as caught:
        parse_switch_options(Config(), {"llm.listenIpInfo": text})
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize(
    ("key", "field", "low", "high"),
    [
        ("SyncKvCacheWaitTime", "sync_timeout_ms", 1, 2**32 - 1),
        ("LinkTotalTime", "link_total_time_s", 1, 2**32 - 1),
        ("LinkRetryCount", "link_retry_count", 1, 100),
        ("RdmaTrafficClass", "rdma_traffic_class", -5, 1000),
        ("RdmaServiceLevel", "rdma_service_level", -5, 1000),
        ("MaxRegisteredAddrs", "max_registered_addrs", 1, 2**63 - 1),
        ("LinkBasePort", "link_base_port", 1024, 65000),
        ("TransferThreads", "transfer_threads", 1, 256),
        ("LanesPerLink", "lanes_per_link", 1, 64),
        ("HeartbeatMs", "heartbeat_ms", 0, 3_600_000),
        ("PeerTimeoutMs", "peer_timeout_ms", 100, 86_400_000),
        ("SlowTransferMs", "slow_transfer_ms", 1, 2**32 - 1),
    ],
)
def test_a_number_is_decimal_and_in_range(key, field, low, high):
    """api.md checklist 7."""
    for value in (low, high):
        assert getattr(parse(**{key: str(value)}), field) == value
    wrong = ["", "a", "1.0", "0x1", "+1", "1 ", "1_0"]
    if not key.startswith("Rdma"):
        wrong += [str(high + 1), "-1"]
    for text in wrong:
        refused(MANAGED | {f"llm.{key}": text}, f"llm.{key}", repr(text))


@pytest.mark.parametrize(
    ("heartbeat", "timeout", "expected"),
    [
        ("0", None, (0, 10_000)),
        ("5000", None, (5000, 10_000)),
        ("5001", None, (5001, 10_002)),
        (None, "100", (50, 100)),
        (None, "1999", (999, 1999)),
        (None, "2000", (1000, 2000)),
        (None, "60000", (1000, 60_000)),
        ("0", "100", (0, 100)),
        ("50", "100", (50, 100)),
    ],
)
def test_heartbeat_and_peer_timeout_fit_each_other(heartbeat, timeout, expected):
    given = {"HeartbeatMs": heartbeat, "PeerTimeoutMs": timeout}
    config = parse(**{key: text for key, text in given.items() if text is not None})
    assert (config.heartbeat_ms, config.peer_timeout_ms) == expected


@pytest.mark.parametrize(("heartbeat", "timeout"), [("51", "100"), ("3600000", "10000")])
def test_a_peer_has_the_time_of_two_heartbeats(heartbeat, timeout):
    options = {"llm.HeartbeatMs": heartbeat, "llm.PeerTimeoutMs": timeout}
    refused(MANAGED | options, "llm.HeartbeatMs", "llm.PeerTimeoutMs", heartbeat, timeout)


@pytest.mark.parametrize("text", ["", "a", "-0.1", "1.1", "nan", "inf"])
def test_other_text_is_no_utilization(text):
    refused(MANAGED | {"llm.MemUtilization": text}, "llm.MemUtilization")


@pytest.mark.parametrize(
    ("name", "key", "field", "default", "value"),
    [
        ("HCCL_CONNECT_TIMEOUT", "LinkTotalTime", "link_total_time_s", 120, 240),
        ("HCCL_IF_BASE_PORT", "LinkBasePort", "link_base_port", 60000, 50000),
        ("HCCL_RDMA_TC", "RdmaTrafficClass", "rdma_traffic_class", 132, 100),
        ("HCCL_RDMA_SL", "RdmaServiceLevel", "rdma_service_level", 4, 3),
    ],
)
def test_an_environment_variable_fills_in_for_an_option(name, key, field, default, value):
    """api.md checklist 7."""
    assert getattr(parse({name: str(value)}), field) == value
    assert getattr(parse({name: ""}), field) == default
    assert getattr(parse({name: str(value)}, **{key: "2000"}), field) == 2000
    refused(MANAGED, f": environment variable {name} is 'many'", environ={name: "many"})


def test_a_link_total_time_of_0_asks_the_environment():
    """api.md checklist 7."""
    assert parse(LinkTotalTime="0").link_total_time_s == 120
    assert parse({"HCCL_CONNECT_TIMEOUT": "9"}, LinkTotalTime="0").link_total_time_s == 9
    assert parse({"HCCL_CONNECT_TIMEOUT": "9"}, LinkTotalTime="5").link_total_time_s == 5


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "77")
    assert parse_options(MANAGED).link_total_time_s == 77


@pytest.mark.parametrize("text", ["auto", "host", "tcp", "nixl"])
def test_a_backend_is_one_of_the_known(text):
    config = parse(TransferBackend=text)
    assert (config.backend, config.is_hixl) == (text, False)


@pytest.mark.parametrize("text", ["", "AUTO", "rdma", "hccs"])
def test_another_backend_is_refused(text):
    refused(MANAGED | {"llm.TransferBackend": text}, "llm.TransferBackend", "host")


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda"])
def test_a_device_is_one_of_the_known(text):
    assert parse(Device=text).device == text
    refused(MANAGED | {"llm.Device": text + "x"}, "llm.Device")


@pytest.mark.parametrize("text", ["auto", "kernel", "engine"])
def test_a_way_to_copy_is_one_of_the_known(text):
    assert parse(GpuCopy=text).gpu_copy == text
    refused(MANAGED | {"llm.GpuCopy": text.upper()}, "llm.GpuCopy", "kernel")


@pytest.mark.parametrize("text", ["off", "crc32c"])
def test_a_checksum_is_one_of_the_known(text):
    assert parse(Checksum=text).checksum == text
    refused(MANAGED | {"llm.Checksum": text.upper()}, "llm.Checksum", "crc32c")


@pytest.mark.parametrize("text", ["off", "advise", "collapse"])
def test_huge_pages_are_asked_for_in_a_known_way(text):
    assert parse(HugePages=text).huge_pages == text
    refused(MANAGED | {"llm.HugePages": text + "d"}, "llm.HugePages", "advise")


@pytest.mark.parametrize("text", ["UCX", "LIBFABRIC"])
def test_an_engine_of_nixl_is_one_of_the_known(text):
    assert parse(NixlBackend=text).nixl_backend == text
    refused(MANAGED | {"llm.NixlBackend": text.lower()}, "llm.NixlBackend", "UCX")


def test_parameters_of_the_engine_become_text():
    config = parse(NixlParams='{"a": "b", "c": 3, "d": true, "e": 0.5}')
    assert config.nixl_params == {"a": "b", "c": "3", "d": "true", "e": "0.5"}
    for text in ("", "[]", '{"a": null}', '{"a": {}}', "{"):
        refused(MANAGED | {"llm.NixlParams": text}, "llm.NixlParams")


def test_strict_backend_is_a_switch():
    assert parse(StrictBackend="1").strict_backend
    refused(MANAGED | {"llm.StrictBackend": "yes"}, "llm.StrictBackend")


def test_hixl_means_auto():
    config = parse_options(HIXL, {})
    assert (config.backend, config.is_hixl) == ("auto", True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"llm.EnableCacheManager": "0"}, "EnableCacheManager"),
        ({"llm.EnableCacheManager": None}, "EnableCacheManager"),
        ({"llm.listenIpInfo": None}, "listenIpInfo"),
        ({"llm.EnableRemoteCacheAccessible": "0"}, "EnableRemoteCacheAccessible"),
    ],
)
def test_hixl_asks_for_other_options_by_name(change, text):
    options = {key: value for key, value in (HIXL | change).items() if value is not None}
    refused(options, text, "hixl")


def test_hixl_is_content_with_local_comm_res_for_a_cache_manager():
    options = {key: value for key, value in HIXL.items() if key not in MANAGED}
    assert parse_options(options | {"llm.LocalCommRes": ""}, {}).cache_manager


def test_switch_options_without_an_address_mean_a_client():
    """api.md checklist 30."""
    assert parse_switch_options(Config(), {}) == []
    assert parse_switch_options(Config(), MANAGED) == []


def test_switch_options_of_other_types_are_a_type_error():
    """api.md checklist 30."""
    for options in (None, [], {"llm.listenIpInfo": 1}):
        with pytest.raises(TypeError):
            parse_switch_options(Config(), options)


def test_hixl_keeps_its_port():
    """api.md checklist 30."""
    config = parse_options(HIXL, {})
    assert parse_switch_options(config, {"llm.listenIpInfo": "127.0.0.2:26000"})
    with pytest.raises(LLMException, match=r"26001.*hixl.*26000") as caught:
        parse_switch_options(config, {"llm.listenIpInfo": "127.0.0.1:26001"})
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert parse_switch_options(parse(), {"llm.listenIpInfo": "127.0.0.1:26001"})


def test_a_secret_comes_from_the_option_then_the_environment_then_the_file(tmp_path):
    """api.md checklist 60."""
    file = tmp_path / "secret"
    file.write_bytes(b" from file \n")
    file.chmod(0o600)
    environ = {"LLM_DATADIST_SECRET_FILE": str(file)}
    assert parse(environ).secret == b" from file "
    environ["LLM_DATADIST_SECRET"] = "from environment"
    assert parse(environ).secret == b"from environment"
    assert parse(environ, LinkSecret="from option é").secret == os.fsencode("from option é")


def test_an_empty_environment_variable_is_no_secret():
    """api.md checklist 60."""
    assert parse({"LLM_DATADIST_SECRET": "", "LLM_DATADIST_SECRET_FILE": ""}).secret is None


def test_an_empty_secret_is_refused_where_one_was_meant(tmp_path):
    """api.md checklist 60: it must not come to mean "no authentication"."""
    refused(MANAGED | {"llm.LinkSecret": ""}, "llm.LinkSecret")
    file = tmp_path / "secret"
    file.write_text("\n")
    refused(MANAGED, str(file), environ={"LLM_DATADIST_SECRET_FILE": str(file)})
    refused(MANAGED, "/none", environ={"LLM_DATADIST_SECRET_FILE": "/none"})


def test_a_parsed_config_is_frozen_and_prints_without_the_secret():
    """api.md checklist 61."""
    config = parse(LinkSecret="hunter2")
    assert "hunter2" not in repr(config)
    assert "lanes_per_link=4" in repr(config)
    with pytest.raises(AttributeError):
        config.listen = None
