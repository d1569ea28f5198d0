"""The backend contract (`_backends/base.py`) as checks that any backend must pass.

    def make_backend(node):               # at the top level of a module: the target imports it
        return MyBackend(node)

    check_backend(make_backend)           # the target is a process
    check_backend(make_backend, "thread") # the target is a thread of this process

Each check gets a fresh pair of instances over loopback lanes, moves bytes between their memories,
disturbs one of them, and checks outcomes, bytes and times. A test suite that wants one result per
check parametrizes over `CHECKS` and calls `run_check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._types.named_calls import names_call
from llm_datadist.testing import _checks_data, _checks_failure, _checks_rights
from llm_datadist.testing._backend_pair import backend_pair
from llm_datadist.testing._bodies import BodyName

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from llm_datadist.testing._backend_end import BackendMaker
    from llm_datadist.testing._backend_pair import BackendPair

    Check = Callable[[BackendPair], None]

CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check
    for module in (_checks_data, _checks_rights, _checks_failure)
    for name, check in vars(module).items()
    if name.startswith("check_")
}
"""Every check by its name."""

NEEDS_PROCESS = frozenset({"frozen_target", "killed_target", "busy_target"})
"""Checks that kill, freeze or block the target, so that it must be a process."""


@names_call
def run_check(
    name: str, make_backend: BackendMaker, kind: Literal["process", "thread"] = "process"
) -> None:
    """Run one check.

    Args:
        name: One of `CHECKS`.
        make_backend: Makes a backend from a node; at the top level of a module.
        kind: Kind of the target.

    Raises:
        AssertionError: The backend breaks the contract.
        Unavailable: It cannot serve such a pair on this machine.
        ValueError: The check needs a process.
    """
    if kind == "thread" and name in NEEDS_PROCESS:
        raise ValueError(f"check {name} needs a target that is a process")
    with backend_pair(BodyName.of(make_backend), kind) as pair:
        CHECKS[name](pair)


@names_call
def check_backend(
    make_backend: BackendMaker, kind: Literal["process", "thread"] = "process"
) -> None:
    """Run every check that this kind of target allows; the first that fails raises.

    Args:
        make_backend: Makes a backend from a node; at the top level of a module.
        kind: Kind of the target.

    Raises:
        AssertionError: The backend breaks the contract; the text begins with the check's name.
        Unavailable: It cannot serve such a pair on this machine.
    """
    for name in CHECKS:
        if kind == "thread" and name in NEEDS_PROCESS:
            continue
        try:
            run_check(name, make_backend, kind)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
