"""What the lease calls of CacheManager give *(extension)*.

Source: docs/howto/leases.md.
"""

from llm_datadist._engine.leases.borrower import Lease
from llm_datadist._types.lease import LeaseEnd

__all__ = ["Lease", "LeaseEnd"]

Lease.__module__ = LeaseEnd.__module__ = __name__  # as tracebacks, help and pickles name them
