"""LLMDataDist.switch_role (api.md 4.7)."""

import json
import secrets
import socket

import pytest

from llm_datadist import BlocksCacheKey, LLMDataDist, LLMRole, LLMStatusCode

S = LLMStatusCode
OK = (S.LLM_SUCCESS, [S.LLM_SUCCESS])
ROLES = list(LLMRole)


def accepts(address):
    with socket.socket() as sock:
        return sock.connect_ex(address) == 0


def listen_at(address):
    return {"llm.listenIpInfo": "{}:{}".format(*address)}


@pytest.fixture
def free_address():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()


@pytest.mark.parametrize("before", ROLES)
@pytest.mark.parametrize("after", ROLES)
def test_any_role_after_any(instance, before, after):
    """api.md checklist 30. The present one, too."""
    one = instance(1, before)
    assert one.role is before
    assert one.switch_role(after) is None
    assert one.role is after
    assert f"role={after}" in repr(one)


def test_with_an_address_it_is_a_server_there(instance, info, free_address):
    """api.md checklist 30."""
    one, two = instance(1), instance(2)
    earlier = one.listen_address
    one.switch_role(LLMRole.PROMPT, listen_at(free_address))
    assert one.listen_address == free_address
    assert not accepts(earlier)
    assert two.link_clusters([info(one)]) == OK


def test_without_an_address_it_is_a_client(instance, info):
    """api.md checklist 30."""
    one, two = instance(1), instance(2)
    for options in (None, {}):
        one.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:0"})
        earlier = one.listen_address
        assert accepts(earlier)
        one.switch_role(LLMRole.DECODER, options)
        assert one.listen_address is None
        assert not accepts(earlier)
    assert one.link_clusters([info(two)]) == OK


def test_a_client_becomes_a_server(instance, info):
    """api.md checklist 30."""
    one, two = instance(1, listen=None), instance(2)
    one.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:0"})
    assert two.link_clusters([info(one)]) == OK


def test_all_options_of_an_instance_are_accepted(instance, options, free_address):
    """api.md checklist 30."""
    one = instance(1)
    given = options(
        listen="{}:{}".format(*free_address),
        mem_pool_cfg='{"memory_size": 1048576}',
        sync_kv_timeout=77,
        device_id=[0, 1],
    )
    before = dict(given)
    one.switch_role(LLMRole.PROMPT, given)
    assert one.listen_address == free_address
    assert given == before


def test_the_same_address_again(instance, info):
    """api.md checklist 30."""
    one, two = instance(1), instance(2)
    address = one.listen_address
    one.switch_role(LLMRole.PROMPT, listen_at(address))
    assert one.listen_address == address
    assert two.link_clusters([info(one)]) == OK


def test_links_must_go_first(pair, info, failure):
    """api.md checklist 30."""
    near, far = pair
    address = near.listen_address
    for side in pair:
        error = failure(side.switch_role, LLMRole.DECODER)
        assert error.status_code is S.LLM_EXIST_LINK
        assert "unlink" in str(error)
        assert side.role is LLMRole.MIX
    assert near.listen_address == address
    far.check_link_status(1)
    assert near.unlink_clusters([info(cluster_id=2)]) == OK
    near.switch_role(LLMRole.DECODER)
    far.switch_role(LLMRole.PROMPT, listen_at(far.listen_address))
    assert near.link_clusters([info(far)]) == OK


def test_links_of_domains_must_go_first_too(instance, failure, eventually):
    """api.md checklist 30."""
    base_port = 12000 + 8 * secrets.randbelow(2000)
    sides = [instance(number, link_base_port=base_port) for number in (1, 2)]
    devices = [{"device_id": f"{rank}", "rank_id": f"{rank}"} for rank in (0, 1)]
    table = json.dumps({"server_list": [{"server_id": "127.0.0.1", "device": devices}]})
    ids = [side.link("pair", {1: 0, 2: 1}, table) for side in sides]
    for side, comm_id in zip(sides, ids, strict=True):
        eventually(lambda side=side, i=comm_id: side.query_register_mem_status(i).name == "OK", 15)
        assert failure(side.switch_role, LLMRole.PROMPT).status_code is S.LLM_EXIST_LINK
    for side, comm_id in zip(sides, ids, strict=True):
        side.unlink(comm_id)
    for side in sides:
        eventually(lambda side=side: not side._engine.links.links())
        side.switch_role(LLMRole.PROMPT)


@pytest.mark.parametrize("taken", ["in use", "not ours"])
def test_an_address_that_cannot_be_had_changes_nothing(instance, info, failure, taken):
    """api.md checklist 30."""
    one, two = instance(1), instance(2)
    address = one.listen_address
    wanted = two.listen_address if taken == "in use" else ("192.0.2.1", 0)
    error = failure(one.switch_role, LLMRole.PROMPT, listen_at(wanted))
    assert error.status_code is S.LLM_FAILED
    assert wanted[0] in str(error)
    assert str(wanted[1]) in str(error)
    assert one.role is LLMRole.MIX
    assert one.listen_address == address
    assert two.link_clusters([info(one)]) == OK


@pytest.mark.parametrize("text", ["127.0.0.1", "", "a:1", "127.0.0.1:65536"])
def test_a_malformed_address_changes_nothing(instance, failure, text):
    """api.md checklist 30."""
    one = instance(1)
    address = one.listen_address
    error = failure(one.switch_role, LLMRole.PROMPT, {"llm.listenIpInfo": text})
    assert error.status_code is S.LLM_PARAM_INVALID
    assert "listenIpInfo" in str(error)
    assert one.listen_address == address
    assert one.role is LLMRole.MIX


def test_hixl_keeps_its_port(options, failure, free_address):
    """api.md checklist 30."""
    with LLMDataDist(LLMRole.MIX, 1) as one:
        one.init(options(listen="{}:{}".format(*free_address), transfer_backend="hixl"))
        other = {"llm.listenIpInfo": f"127.0.0.1:{free_address[1] ^ 1}"}
        error = failure(one.switch_role, LLMRole.PROMPT, other)
        assert error.status_code is S.LLM_PARAM_INVALID
        assert one.listen_address == free_address
        one.switch_role(LLMRole.PROMPT, listen_at(free_address))
        assert one.listen_address == free_address


def test_hixl_keeps_the_port_that_was_chosen_for_port_0(options, failure):
    """api.md checklist 30. Also after a time as a client, and by the options of init again."""
    with LLMDataDist(LLMRole.MIX, 1) as one:
        given = options(transfer_backend="hixl")
        one.init(given)
        address = one.listen_address
        other = {"llm.listenIpInfo": f"127.0.0.1:{address[1] ^ 1}"}
        assert str(address[1]) in str(failure(one.switch_role, LLMRole.PROMPT, other))
        for same in (listen_at(address), given):
            one.switch_role(LLMRole.DECODER)
            assert one.listen_address is None
            one.switch_role(LLMRole.PROMPT, same)
            assert one.listen_address == address


def test_it_is_not_an_option_with_the_cache_manager(instance):
    """api.md checklist 30. enable_switch_role is accepted and ignored."""
    for enabled in (True, False):
        instance(1, enable_switch_role=enabled).switch_role(LLMRole.DECODER)


def test_caches_stay(instance, info, blocks):
    """api.md checklist 30."""
    one, two = instance(1), instance(2)
    blocks(one, 1)
    manager = one.cache_manager
    one.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:0"})
    assert one.cache_manager is manager
    assert two.link_clusters([info(one)]) == OK
    cache, memory = blocks(two, 2)
    two.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    assert (memory[:, 0] == 1).all()
