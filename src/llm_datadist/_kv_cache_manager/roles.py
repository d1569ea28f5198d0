"""What the role of a first-generation instance allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from llm_datadist._errors import invalid
from llm_datadist._types import LLMRole

if TYPE_CHECKING:
    from llm_datadist._errors import LLMException


@final
class RoleRules:
    """Checks calls against the role of an instance. Thread-safe.

    Attributes:
        role: The present role; `LLMDataDist.switch_role` changes it.
    """

    def __init__(self, role: LLMRole) -> None:
        self.role = role

    def check_keys(self, operation: str) -> None:
        """Refuse a call that sets or removes keys, unless the role serves (LLM_PARAM_INVALID)."""
        if self.role is LLMRole.DECODER:
            raise self._refusal(operation, "cache keys are set and removed", LLMRole.PROMPT)

    def check_pulls(self, operation: str) -> None:
        """Refuse a pull, unless the role pulls (LLM_PARAM_INVALID)."""
        if self.role is LLMRole.PROMPT:
            raise self._refusal(operation, "caches are pulled", LLMRole.DECODER)

    def _refusal(self, operation: str, what: str, wanted: LLMRole) -> LLMException:
        return invalid(
            operation,
            f"the role of this instance is {self.role}, and {what} by {wanted} or {LLMRole.MIX} "
            "only",
            "call it on the other side of the link, or change the role with switch_role",
        )
