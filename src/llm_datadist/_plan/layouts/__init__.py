"""Transfers between caches of unequal layouts, as arithmetic on arrays.

`kv_layout` says what one rank's cache holds and where each row lies; `build` and `vllm_spec` make
such layouts, `wire` is their byte form, `fit` compares them with a cache's description.

`reshape` plans: `match` says what can be moved, `parts` which rank is asked for what, `descriptors`
makes the arrays.
"""

from __future__ import annotations

from llm_datadist._plan.layouts.build import HND_AXES, NHD_AXES, dense, heads_of_rank, of_tensor
from llm_datadist._plan.layouts.fit import check_fit, check_layout
from llm_datadist._plan.layouts.kv_layout import Interior, KvLayout, Strides
from llm_datadist._plan.layouts.parts import Part
from llm_datadist._plan.layouts.placed import PlacedLayout, Tokens, check_reach
from llm_datadist._plan.layouts.report import (
    RankReport,
    gathering_is_faster,
    reason_of,
    share_if_gathered,
    share_of_full_rate,
)
from llm_datadist._plan.layouts.reshape import (
    LinkPlan,
    Side,
    check_tokens,
    plan_pull,
    plan_push,
    plan_rank,
    pull_parts,
    push_parts,
)
from llm_datadist._plan.layouts.vllm_spec import of_vllm_spec
from llm_datadist._plan.layouts.wire import (
    MAX_LAYOUT_BYTES,
    from_bytes,
    from_json,
    to_bytes,
    to_json,
)

__all__ = [
    "HND_AXES",
    "MAX_LAYOUT_BYTES",
    "NHD_AXES",
    "Part",
    "PlacedLayout",
    "RankReport",
    "Interior",
    "KvLayout",
    "LinkPlan",
    "Side",
    "Strides",
    "Tokens",
    "check_fit",
    "check_layout",
    "check_reach",
    "check_tokens",
    "dense",
    "from_bytes",
    "from_json",
    "gathering_is_faster",
    "heads_of_rank",
    "of_tensor",
    "of_vllm_spec",
    "plan_pull",
    "plan_push",
    "plan_rank",
    "pull_parts",
    "push_parts",
    "reason_of",
    "share_if_gathered",
    "share_of_full_rate",
    "to_bytes",
    "to_json",
]
