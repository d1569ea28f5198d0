"""Where an instance of a role listens, and what a switch of roles needs (api.md 8)."""

import pytest

from llm_datadist import LLMException, LLMRole, LLMStatusCode
from llm_datadist._datadist.first_generation import check_switch, listens_for, with_role
from llm_datadist._options.settings import Config

S = LLMStatusCode
ONE, TWO = ("127.0.0.1", 1), ("127.0.0.2", 2)
FIRST = Config(cache_manager=False, listen=ONE, more_listen=(TWO,))


def test_a_role_decides_where_an_instance_listens(caplog):
    for role in (LLMRole.PROMPT, LLMRole.MIX):
        assert with_role(FIRST, role) == FIRST
    with caplog.at_level("INFO", "llm_datadist"):
        decoder = with_role(FIRST, LLMRole.DECODER)
    assert (decoder.listen, decoder.more_listen) == (None, ())
    assert "option llm.listenIpInfo is ignored: the role is Decoder" in caplog.text
    assert listens_for(FIRST, "switch_role", LLMRole.MIX, []) == []


@pytest.mark.parametrize("operation", ["init", "switch_role"])
def test_a_prompt_needs_an_address(operation):
    with pytest.raises(LLMException, match=r"llm\.listenIpInfo is missing.*Prompt") as caught:
        listens_for(FIRST, operation, LLMRole.PROMPT, [])
    assert caught.value.status_code is S.LLM_PARAM_INVALID
    assert caught.value.operation == operation


@pytest.mark.parametrize("role", LLMRole)
def test_with_the_cache_manager_a_role_is_a_label(role):
    for config in (Config(), Config(listen=ONE)):
        assert with_role(config, role) == config
    check_switch(Config(), role, role)


def test_a_switch_needs_the_option_and_another_role():
    with pytest.raises(LLMException, match="enable_switch_role") as caught:
        check_switch(FIRST, LLMRole.MIX, LLMRole.PROMPT)
    assert caught.value.status_code is S.LLM_FEATURE_NOT_ENABLED
    enabled = Config(cache_manager=False, switch_role=True)
    check_switch(enabled, LLMRole.MIX, LLMRole.PROMPT)
    with pytest.raises(LLMException, match="is Mix already") as caught:
        check_switch(enabled, LLMRole.MIX, LLMRole.MIX)
    assert caught.value.status_code is S.LLM_PARAM_INVALID
