"""What the lease calls of CacheManager give *(extension)*.

Source: docs/howto/leases.md.
"""

from llm_datadist._engine.leases.borrower import Lease
from llm_datadist._types.lease import LeaseEnd

__all__ = ["Lease", "LeaseEnd"]
