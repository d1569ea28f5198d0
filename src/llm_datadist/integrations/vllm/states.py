"""Running states (Mamba and the like): the prompt that has them, and the groups that keep them.

A state is that after some token, and each further token replaces it. A consumer computes the
prompt's last token itself, so it needs the state after the one before. Therefore a producer of a
model with states computes such a prompt without its last token; what it then samples is of no use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_STATES = {"MambaSpec"}
"""Kinds of KV cache spec whose blocks hold a running state."""

_CACHE_MODES = {"none", "align"}
"""vLLM's ways to keep states in which the running one is in the block of the last token."""


def specs_of(group_spec: Any) -> list[Any]:
    """Return the specs of a group's layers, each kind at least once."""
    return list(getattr(group_spec, "kv_cache_specs", {"": group_spec}).values())


def is_state(spec: Any) -> bool:
    """Return whether the blocks of a layer hold a running state."""
    return type(spec).__name__ in _STATES


def state_groups_of(kv_cache_config: Any) -> frozenset[int]:
    """Return the KV cache groups that have layers with a state.

    Args:
        kv_cache_config: vLLM's KVCacheConfig.
    """
    return frozenset(
        index
        for index, group in enumerate(kv_cache_config.kv_cache_groups)
        if any(map(is_state, specs_of(group.kv_cache_spec)))
    )


def state_problem(spec: Any, group_specs: Sequence[Any]) -> str:
    """Return why a state cannot be moved, or "".

    Args:
        spec: Of a layer with a state.
        group_specs: Those of the layers of its group.
    """
    mode = getattr(spec, "mamba_cache_mode", "unknown")
    if mode not in _CACHE_MODES:
        return (
            f'which of its blocks has the last state is not known in mamba_cache_mode "{mode}"; '
            'write --mamba-cache-mode "align" or "none"'
        )
    if getattr(spec, "num_speculative_blocks", 0):
        return "with speculative decoding a request has several states; run the engine without it"
    if not all(map(is_state, group_specs)):
        return "other layers of its group hold no states"
    return ""


def describe_state(spec: Any) -> str:
    """Describe a state for the compatibility check: equal blocks may hold unequal states."""
    kind = getattr(spec.mamba_type, "name", spec.mamba_type)
    states = zip(spec.shapes, spec.dtypes, strict=True)
    listed = ", ".join(f"{list(shape)} {dtype}" for shape, dtype in states)
    return f"{type(spec).__name__} {kind} {listed}, {spec.mamba_cache_mode}"


def shorten(request: Any) -> str:
    """Remove the last token of the prompt of a new request, for its state to be the one needed.

    Args:
        request: vLLM's; before it is scheduled.

    Returns:
        Why this is not possible, or "".
    """
    kept = request.num_prompt_tokens - 1
    sampling = request.sampling_params
    if sampling is None or request.max_tokens != 1:
        return 'a further token would replace its state; write "max_tokens": 1'
    if sampling.prompt_logprobs is not None:
        return "log probabilities of the whole prompt are asked for"
    if any(
        each.mm_position.offset + each.mm_position.length > kept for each in request.mm_features
    ):
        return "its last token is part of an image or the like"
    if getattr(request, "resumable", False):
        return "more of the prompt may follow"
    all_tokens = getattr(request, "_all_token_ids", None)
    if not isinstance(all_tokens, list) or len(all_tokens) != request.num_prompt_tokens:
        return "this version of vLLM keeps the tokens of a request in another way"
    request.prompt_token_ids = request.prompt_token_ids[:-1]  # the front end may have the same list
    all_tokens.pop()
    request.num_prompt_tokens = kept
    return ""
