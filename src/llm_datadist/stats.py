"""What `LLMDataDist.stats` returns *(extension)*.

Source: docs/howto/metrics.md.
"""

from llm_datadist._types.stats import (
    CacheStats,
    FaultStats,
    Histogram,
    InstanceStats,
    LeaseStats,
    LinkStats,
    PoolStats,
    TransferStats,
)

__all__ = [
    "CacheStats",
    "FaultStats",
    "Histogram",
    "InstanceStats",
    "LeaseStats",
    "LinkStats",
    "PoolStats",
    "TransferStats",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # as tracebacks, help and pickles name them
del _name
