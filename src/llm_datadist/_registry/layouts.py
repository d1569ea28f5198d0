"""Layout of a cache from its description."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llm_datadist._plan import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llm_datadist._types import CacheDesc


def cache_layout(
    desc: CacheDesc, addrs: Sequence[int] | NDArray[np.uint64], *, is_blocks: bool
) -> Layout:
    """Return where the tensors lie, divided into blocks or slots.

    A contiguous cache whose batch is not the outermost dimension has no slots that are one piece
    of memory: its tensors count as one unit, and `CacheDesc.slot_bytes` says why when one is
    addressed.

    Raises:
        ValueError: A tensor would end beyond the address space.
    """
    if is_blocks:
        return Layout.of(addrs, desc.tensor_bytes, desc.num_blocks)
    return Layout.of(addrs, desc.tensor_bytes, desc.batch_size if has_slots(desc) else 1)


def has_slots(desc: CacheDesc) -> bool:
    """Return whether each slot of a contiguous cache is one piece of memory."""
    batch_dim = desc.batch_dim_index
    shape = desc.shape
    return 0 <= batch_dim < len(shape) and math.prod(shape[:batch_dim]) == 1
