"""What each role may do, and the switch of roles (api.md 8)."""

import pytest

from llm_datadist import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, LLMRole
from support.first_generation import desc_of, filled, link, options_of, values
from support.instances import failing
from support.setup import ANY_PORT, LOOPBACK, info_of

KEY = CacheKey(1, 1)


def test_keys_are_set_and_removed_on_prompt_only(instance):
    decoder = instance(LLMRole.DECODER, 2).kv_cache_manager
    for call in (
        lambda: decoder.allocate_cache(desc_of(), [KEY]),
        lambda: decoder.allocate_blocks_cache(desc_of(), BlocksCacheKey(1)),
        lambda: decoder.remove_cache_key(KEY),
    ):
        with failing("LLM_PARAM_INVALID", call.__code__.co_names[0], "Decoder", "Prompt"):
            call()
    assert decoder.allocate_cache(desc_of()).cache_id == 1  # nothing was allocated before


def test_pulls_are_made_on_decoder_only(instance):
    prompt = instance(LLMRole.PROMPT, 1).kv_cache_manager
    slots, blocks = prompt.allocate_cache(desc_of()), prompt.allocate_blocks_cache(desc_of())
    with failing("LLM_PARAM_INVALID", "pull_cache", "Prompt", "Decoder"):
        prompt.pull_cache(CacheKeyByIdAndIndex(2, 1), slots)
    with failing("LLM_PARAM_INVALID", "pull_blocks", "Prompt", "Decoder"):
        prompt.pull_blocks(BlocksCacheKey(2), blocks, [0], [0])


def test_wrong_types_come_before_the_role(instance):
    prompt, decoder = instance(LLMRole.PROMPT, 1), instance(LLMRole.DECODER, 2)
    with pytest.raises(TypeError, match="cache_key"):
        prompt.kv_cache_manager.pull_cache("key", None)
    with pytest.raises(TypeError, match="key"):
        decoder.kv_cache_manager.remove_cache_key(1)


def test_a_mix_does_both(instance):
    """Two of them pull from each other over one link."""
    sides = [instance(LLMRole.MIX, number) for number in (1, 2)]
    link(sides[1], sides[0])
    kept = []
    for side in sides:
        keys = [CacheKey(side.cluster_id, 1)]
        cache = side.kv_cache_manager.allocate_cache(desc_of(), keys)
        kept.append(filled(cache, 10 * side.cluster_id))
    for side, own in zip(sides, kept, strict=True):
        peer = 3 - side.cluster_id
        side.kv_cache_manager.pull_cache(CacheKey(peer, 1), own, 3)
        assert values(own)[3] == 10 * peer


def test_a_decoder_links_to_several_prompts(instance):
    prompts = [instance(LLMRole.PROMPT, number) for number in (1, 2, 3)]
    decoder = instance(LLMRole.DECODER, 4)
    statuses = decoder.link_clusters([info_of(prompt) for prompt in prompts])[1]
    assert [status.name for status in statuses] == ["LLM_SUCCESS"] * 3
    target = decoder.kv_cache_manager.allocate_cache(desc_of())
    for slot, prompt in enumerate(prompts):
        source = filled(prompt.kv_cache_manager.allocate_cache(desc_of()), 10 * slot)
        key = CacheKeyByIdAndIndex(prompt.cluster_id, source.cache_id)
        decoder.kv_cache_manager.pull_cache(key, target, slot)
    assert values(target)[:3] == [0, 10, 20]


def test_switch_role_must_be_enabled(instance):
    decoder = instance(LLMRole.DECODER, 1)
    with failing("LLM_FEATURE_NOT_ENABLED", "switch_role", "enable_switch_role"):
        decoder.switch_role(LLMRole.MIX)
    with pytest.raises(TypeError):
        decoder.switch_role("Mix")
    assert decoder.role is LLMRole.DECODER


def test_switch_role_to_the_same_role(instance):
    decoder = instance(LLMRole.DECODER, 1, enable_switch_role=True)
    with failing("LLM_PARAM_INVALID", "switch_role", "Decoder"):
        decoder.switch_role(LLMRole.DECODER, {"llm.listenIpInfo": ANY_PORT})


def test_switch_role_to_prompt_needs_an_address(instance):
    """That of init does not count: the switch closed it, or there was none."""
    one = instance(LLMRole.DECODER, 1, enable_switch_role=True)
    for options in (None, {}, {"llm.Role": "Prompt"}):
        with failing("LLM_PARAM_INVALID", "switch_role", "llm.listenIpInfo"):
            one.switch_role(LLMRole.PROMPT, options)
    assert (one.role, one.listen_address) == (LLMRole.DECODER, None)
    one.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": ANY_PORT})
    assert one.listen_address[0] == LOOPBACK
    one.switch_role(LLMRole.MIX)
    assert one.listen_address is None


def test_switch_role_with_links(linked):
    prompt, _ = linked
    with failing("LLM_FEATURE_NOT_ENABLED", "switch_role"):
        prompt.switch_role(LLMRole.DECODER)


def test_a_decoder_becomes_a_prompt_and_back(instance):
    """The calls follow the role; a full dict of options is accepted."""
    options = {"enable_switch_role": True}
    one, two = instance(LLMRole.PROMPT, 1, **options), instance(LLMRole.DECODER, 2, **options)
    info = link(two, one)
    with failing("LLM_EXIST_LINK", "switch_role"):
        two.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": ANY_PORT})
    two.unlink_clusters([info])
    two.switch_role(LLMRole.PROMPT, options_of(LLMRole.PROMPT, **options))
    one.switch_role(LLMRole.DECODER, options_of(LLMRole.PROMPT, **options))
    assert (one.role, two.role) == (LLMRole.DECODER, LLMRole.PROMPT)
    assert one.listen_address is None
    link(one, two)
    source = two.kv_cache_manager.allocate_cache(desc_of(), [CacheKey(2, 1)])
    target = one.kv_cache_manager.allocate_cache(desc_of())
    one.kv_cache_manager.pull_cache(CacheKey(2, 1), target)
    with failing("LLM_PARAM_INVALID", "pull_cache", "Prompt"):
        two.kv_cache_manager.pull_cache(CacheKey(1, 1), source)
    with failing("LLM_PARAM_INVALID", "allocate_cache", "Decoder"):
        one.kv_cache_manager.allocate_cache(desc_of(), [KEY])


def test_a_switch_that_cannot_bind_changes_nothing(instance):
    one = instance(LLMRole.PROMPT, 1, enable_switch_role=True)
    before = one.listen_address
    with failing("LLM_FAILED", "switch_role", "192.0.2.1"):
        one.switch_role(LLMRole.MIX, {"llm.listenIpInfo": f"{LOOPBACK}:0;192.0.2.1:0"})
    assert (one.role, one.listen_address) == (LLMRole.PROMPT, before)
    link(instance(LLMRole.DECODER, 2), one)
