"""LLMDataDist.init (api.md 4.1, 4.2)."""

import gc
import socket
from pathlib import Path

import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)
from llm_datadist.testing import leaks_since, snapshot

S = LLMStatusCode
HUGE = '{"memory_size": 4611686018427387904}'


def connects(address):
    with socket.socket() as sock:
        return sock.connect_ex(address) == 0


def test_init_again_returns_silently_and_changes_nothing(instance, options):
    """api.md checklist 11."""
    one = instance()
    manager, address = one.cache_manager, one.listen_address
    one.init(options(listen=None, sync_kv_timeout=1))
    assert one.cache_manager is manager
    assert one.listen_address == address
    assert connects(address)


def test_init_after_finalize_with_the_same_dict(options):
    """api.md checklist 10, 11."""
    given = options(mem_pool_cfg='{"memory_size": 1048576}')
    before = dict(given)
    one = LLMDataDist(LLMRole.PROMPT, 1)
    managers = []
    for _ in range(3):
        one.init(given)
        assert given == before
        managers.append(one.cache_manager)
        assert managers[-1].allocate_cache(CacheDesc(1, [4], DataType.DT_INT8)).cache_id == 1
        one.finalize()
    assert len(set(map(id, managers))) == 3


def test_the_options_are_copied(instance, options, blocks, info):
    """api.md checklist 10."""
    one = LLMDataDist(LLMRole.PROMPT, 1)
    given = options(sync_kv_timeout=5000)
    with one:
        one.init(given)
        given.clear()
        given["llm.listenIpInfo"] = "nonsense"
        two = instance(2)
        assert two.link_clusters([info(one)])[0] is S.LLM_SUCCESS
        blocks(one, 1)
        cache, memory = blocks(two, 2)
        two.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
        assert memory[0, 0, 0] == 1


def test_unknown_keys_are_ignored(options):
    """api.md checklist 10."""
    extra = {"llm.Role": "Prompt", "llm.ClusterInfo": "{", "ge.exec.rankId": "x", "a": "b"}
    with LLMDataDist(LLMRole.PROMPT, 1) as one:
        one.init(options() | extra)
        assert one.listen_address is not None


BAD = [
    pytest.param({"transfer_backend": "pigeon"}, S.LLM_PARAM_INVALID, "pigeon", id="backend"),
    pytest.param({"listen": "127.0.0.1"}, S.LLM_PARAM_INVALID, "listenIpInfo", id="malformed"),
    pytest.param({"listen": "192.0.2.1:0"}, S.LLM_FAILED, "192.0.2.1:0", id="not ours"),
    pytest.param({"mem_pool_cfg": "[1]"}, S.LLM_PARAM_INVALID, "MemPoolConfig", id="pool rules"),
    pytest.param({"mem_pool_cfg": HUGE}, S.LLM_OUT_OF_MEMORY, "mem_pool_cfg", id="device pool"),
    pytest.param(
        {"mem_pool_cfg": '{"memory_size": 1048576}', "host_mem_pool_cfg": HUGE},
        S.LLM_OUT_OF_MEMORY,
        "host_mem_pool_cfg",
        id="host pool",
    ),
    pytest.param(
        {"enable_cache_manager": False, "listen": None},
        S.LLM_PARAM_INVALID,
        "listenIpInfo",
        id="first generation",
    ),
]


@pytest.mark.parametrize(("properties", "status", "names"), BAD)
def test_a_failed_init_leaves_nothing_and_can_be_repeated(
    options, failure, properties, status, names
):
    """api.md checklist 11."""
    one = LLMDataDist(LLMRole.PROMPT, 1)
    earlier = LLMDataDist.llm_engine_instance
    before = snapshot()
    error = failure(one.init, options(**properties))
    assert error.status_code is status
    assert names in str(error)
    del error  # its traceback holds what the call held
    assert leaks_since(before) == []
    assert LLMDataDist.llm_engine_instance is earlier
    with pytest.raises(RuntimeError):
        _ = one.cache_manager
    with one:
        one.init(options())
        assert connects(one.listen_address)


@pytest.mark.parametrize("holder", ["an instance", "a foreign socket"])
def test_a_port_in_use(instance, options, failure, holder):
    """api.md checklist 12."""
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        address = foreign.getsockname() if "socket" in holder else instance(1).listen_address
        before = snapshot()
        error = failure(LLMDataDist(LLMRole.MIX, 2).init, options(listen="{}:{}".format(*address)))
        assert error.status_code is S.LLM_FAILED
        assert str(error).count("{}:{}".format(*address)) == 1
        assert str(error).count("cannot listen") == 1
        del error
        assert leaks_since(before) == []


def memory_files():
    found = [fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return sum("llm_datadist" in str(target) for target in found)


@pytest.mark.parametrize("problem", ["a port in use", "a second pool that cannot be had"])
def test_a_failed_init_leaves_nothing_to_the_garbage_collector(options, failure, problem):
    """Nor to the end of the exception, whose traceback refers to the instance's parts."""
    pool = '{"memory_size": 1048576}'
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        properties = {"mem_pool_cfg": pool, "host_mem_pool_cfg": HUGE}
        if problem == "a port in use":
            listen = "{}:{}".format(*foreign.getsockname())
            properties = {"mem_pool_cfg": pool, "listen": listen}
        before = memory_files()
        gc.disable()
        try:
            error = failure(LLMDataDist(LLMRole.MIX, 2).init, options(**properties))
            # The published page is mapped by a native object that the traceback still has.
            assert memory_files() <= before + 1
        finally:
            gc.enable()
        del error


def test_memory_of_an_accelerator_is_not_pretended(options, failure):
    """api.md checklist 11. A device that cannot be served is refused, not replaced in silence."""
    error = failure(LLMDataDist(LLMRole.MIX, 1).init, options(device="cuda"))
    assert error.status_code is S.LLM_FEATURE_NOT_ENABLED
    assert "llm.Device" in str(error)


def test_the_listener_accepts_when_init_returns(instance):
    """api.md checklist 11."""
    assert connects(instance().listen_address)


def test_a_client_listens_nowhere(instance):
    """api.md checklist 11."""
    assert instance(listen=None).listen_address is None


def test_an_ipv6_address(instance):
    """api.md checklist 11."""
    address = instance(listen="[::1]:0").listen_address
    assert address[0] == "::1"
    with socket.create_connection(address):
        pass


def test_finalize_frees_the_port_at_once(instance, options):
    """api.md checklist 11, 12."""
    one = instance()
    address = one.listen_address
    one.finalize()
    one.init(options(listen="{}:{}".format(*address)))
    assert one.listen_address == address


def test_local_comm_res_selects_the_cache_manager_also_when_empty(instance):
    """api.md checklist 9."""
    one = LLMDataDist(LLMRole.PROMPT, 1)
    with one:
        one.init({"llm.LocalCommRes": ""})
        assert one.cache_manager is one.cache_manager


def test_many_instances_in_one_process(instance, blocks, info):
    """api.md checklist 14."""
    several = [instance(cluster_id) for cluster_id in range(1, 7)]
    assert len({one.listen_address for one in several}) == 6
    assert LLMDataDist.llm_engine_instance is several[-1]
    for one in several:
        blocks(one, one.cluster_id)
    first, *others = several
    assert first.link_clusters([info(other) for other in others])[0] is S.LLM_SUCCESS
    cache, memory = blocks(first, 0, BlocksCacheKey(1, 7))
    for other in others:
        block = [other.cluster_id]
        first.cache_manager.pull_blocks(BlocksCacheKey(other.cluster_id), cache, block, block)
    assert memory[1, :, 5].tolist() == [0, 0, 2, 3, 4, 5, 6, 0]
    others[0].finalize()
    first.cache_manager.pull_blocks(BlocksCacheKey(3), cache, [0], [0])


def test_the_latest_instance_is_kept_by_name(instance):
    """api.md checklist 14."""
    one, two = instance(1), instance(2)
    assert LLMDataDist.llm_engine_instance is two
    one.finalize()
    assert LLMDataDist.llm_engine_instance is two
    two.finalize()
    assert LLMDataDist.llm_engine_instance is None


def test_a_block_finalizes_also_when_it_raises(options):
    """api.md checklist 13."""
    before = snapshot()
    one = LLMDataDist(LLMRole.MIX, 1)
    with pytest.raises(KeyError), one:
        one.init(options())
        raise KeyError("x")
    assert leaks_since(before) == []
    with pytest.raises(RuntimeError):
        _ = one.cache_manager


@pytest.mark.parametrize("cluster_id", [0, 1, 2**32, 2**64 - 1])
def test_any_64_bit_id_is_an_id(cluster_id):
    """api.md checklist 18."""
    assert LLMDataDist(LLMRole.MIX, cluster_id).cluster_id == cluster_id


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1, 1), TypeError),
        (("Prompt", 1), TypeError),
        ((None, 1), TypeError),
        ((LLMRole.MIX, "1"), TypeError),
        ((LLMRole.MIX, 1.0), TypeError),
        ((LLMRole.MIX, True), TypeError),
        ((LLMRole.MIX, None), TypeError),
        ((LLMRole.MIX,), TypeError),
        ((LLMRole.MIX, -1), ValueError),
        ((LLMRole.MIX, 2**64), ValueError),
    ],
)
def test_the_constructor_checks_its_arguments(arguments, error):
    """api.md checklist 5."""
    with pytest.raises(error) as caught:
        LLMDataDist(*arguments)
    assert not isinstance(caught.value, LLMException)


def test_the_first_generations_manager_is_not_to_be_had(pair, failure):
    """api.md checklist 11."""
    error = failure(lambda: pair[0].kv_cache_manager)
    assert error.status_code is S.LLM_FEATURE_NOT_ENABLED
    assert "cache_manager" in str(error)
