"""What a role allows (api.md 8, checklist 62)."""

import pytest

from llm_datadist import LLMException, LLMRole, LLMStatusCode
from llm_datadist._kv_cache_manager.roles import RoleRules


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (LLMRole.PROMPT, {"check_keys"}),
        (LLMRole.DECODER, {"check_pulls"}),
        (LLMRole.MIX, {"check_keys", "check_pulls"}),
    ],
)
def test_a_refusal_names_the_role(role, allowed):
    rules = RoleRules(LLMRole.MIX)
    rules.role = role
    for name in ("check_keys", "check_pulls"):
        check = getattr(rules, name)
        if name in allowed:
            check("pull_cache")
            continue
        with pytest.raises(LLMException, match=f"role of this instance is {role}") as caught:
            check("pull_cache")
        assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
        assert caught.value.operation == "pull_cache"
