"""Tools to test programs that use this package, and its backends.

`PeerGroup` runs functions as peers of each other, `leaks_since` finds resources that a process has
not released, `check_backend` is the executable form of the backend contract, and `inject_faults`
makes transfers fail according to a `FaultPolicy`.
"""

from __future__ import annotations

from llm_datadist._backends.fault_injection.policy import Decision, FaultPolicy, FaultRule
from llm_datadist.testing.conformance import CHECKS, check_backend, run_check
from llm_datadist.testing.exits import (
    Exit,
    Exited,
    Finished,
    GroupClosed,
    Killed,
    PeerFailed,
    Raised,
    TimedOut,
)
from llm_datadist.testing.faults import inject_faults
from llm_datadist.testing.leaks import Snapshot, leaks_since, snapshot
from llm_datadist.testing.member import Member
from llm_datadist.testing.peer_group import Peer, PeerGroup

__all__ = [
    "CHECKS",
    "Decision",
    "Exit",
    "Exited",
    "FaultPolicy",
    "FaultRule",
    "Finished",
    "GroupClosed",
    "Member",
    "Killed",
    "Peer",
    "PeerFailed",
    "PeerGroup",
    "Raised",
    "Snapshot",
    "TimedOut",
    "check_backend",
    "inject_faults",
    "leaks_since",
    "run_check",
    "snapshot",
]

# As tracebacks, help and pickles name them.
for _kind in (Decision, FaultPolicy, FaultRule):
    _kind.__module__ = __name__
del _kind
