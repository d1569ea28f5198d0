"""Layouts of KV caches that prefill and decode need not have in common *(extension)*.

Source: docs/design/layouts.md.
"""

from inspect import isfunction

from llm_datadist._plan.layouts import (
    Interior,
    KvLayout,
    LinkPlan,
    Part,
    PlacedLayout,
    RankReport,
    Strides,
    check_fit,
    dense,
    from_bytes,
    from_json,
    heads_of_rank,
    of_tensor,
    of_vllm_spec,
    plan_pull,
    plan_push,
    to_bytes,
    to_json,
)
from llm_datadist._types.named_calls import names_call

__all__ = [
    "Interior",
    "KvLayout",
    "LinkPlan",
    "Part",
    "PlacedLayout",
    "RankReport",
    "Strides",
    "check_fit",
    "dense",
    "from_bytes",
    "from_json",
    "heads_of_rank",
    "of_tensor",
    "of_vllm_spec",
    "plan_pull",
    "plan_push",
    "to_bytes",
    "to_json",
]

for _name in __all__:
    if _name != "Interior":
        _public = globals()[_name]
        _public.__module__ = __name__  # as tracebacks, help and pickles name them
        if isfunction(_public):
            globals()[_name] = names_call(_public)
del _name, _public
