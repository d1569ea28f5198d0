"""Rules of first-generation mode for an instance: where it listens, how its role changes.

Source: api.md 8.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_datadist._errors import LLMStatusCode, fail, invalid
from llm_datadist._types import LLMRole

if TYPE_CHECKING:
    from llm_datadist._control.sockets import Address
    from llm_datadist._options.settings import Config

__all__ = ["check_switch", "listens_for", "with_role"]

logger = logging.getLogger("llm_datadist")

_OPTION = "llm.listenIpInfo"


def with_role(config: Config, role: LLMRole) -> Config:
    """Return the options of an instance of that role.

    Raises:
        LLMException: LLM_PARAM_INVALID: a PROMPT without a listen address.
    """
    given = [] if config.listen is None else [config.listen, *config.more_listen]
    listens = listens_for(config, "init", role, given)
    return replace(config, listen=listens[0] if listens else None, more_listen=tuple(listens[1:]))


def listens_for(
    config: Config, operation: str, role: LLMRole, given: list[Address]
) -> list[Address]:
    """Return where an instance of a role listens, of the addresses that its options have.

    In first-generation mode a DECODER dials only, and listens nowhere.

    Raises:
        LLMException: LLM_PARAM_INVALID: a PROMPT without one.
    """
    if config.cache_manager:
        return given
    if role is LLMRole.DECODER:
        if given:
            logger.info("%s: option %s is ignored: the role is %s", operation, _OPTION, role)
        return []
    if role is LLMRole.PROMPT and not given:
        raise invalid(
            operation,
            f"option {_OPTION} is missing, and the role is {role}, which serves",
            "set it to ip:port (LLMConfig.listen_ip_info)",
        )
    return given


def check_switch(config: Config, old: LLMRole, new: LLMRole) -> None:
    """Check a switch of roles.

    Raises:
        LLMException: LLM_FEATURE_NOT_ENABLED: the option is off; LLM_PARAM_INVALID: the same role.
    """
    if config.cache_manager:
        return
    if not config.switch_role:
        raise fail(
            LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            "switch_role",
            "option llm.EnableSwitchRole is off",
            'set it to "1" (LLMConfig.enable_switch_role = True) before init',
        )
    if new is old:
        raise invalid(
            "switch_role", f"the role of this instance is {old} already", "give another role"
        )
