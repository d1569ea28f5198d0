"""Fault injection into the transfers of an instance.

policy = FaultPolicy([FaultRule("fail", nth=3, write=False, code="TIMEOUT")], seed=7)
with inject_faults(instance, policy):
    ...                                    # the third pull raises LLM_TIMEOUT
assert [each.post for each in policy.decisions] == [3]
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from llm_datadist._backends.fault_injection.decorator import FaultBackend, FaultChannel
from llm_datadist._backends.fault_injection.policy import FaultPolicy
from llm_datadist._datadist import LLMDataDist
from llm_datadist._errors import LLMException
from llm_datadist._types.checks import check_instance
from llm_datadist._types.named_calls import names_call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._engine import Engine


@names_call
def inject_faults(
    instance: LLMDataDist, policy: FaultPolicy
) -> AbstractContextManager[FaultPolicy]:
    """Make the transfers that an instance initiates fail according to a policy, in this context.

    Existing and new links are affected; transfers that peers initiate are not. Lookups of keys and
    the consumption of CacheKeys are not transfers.

    Args:
        instance: An initialized instance; it may be finalized inside.
        policy: Makes and records the decisions.

    Raises:
        RuntimeError: The instance is not initialized.
        TypeError: A wrong type.
    """
    check_instance("instance", instance, LLMDataDist)
    check_instance("policy", policy, FaultPolicy)
    engine = instance._engine
    if engine is None:
        raise RuntimeError("inject_faults: the LLMDataDist instance is not initialized")
    return _injected(engine, policy)


@contextmanager
def _injected(engine: Engine, policy: FaultPolicy) -> Iterator[FaultPolicy]:
    drop_link = partial(_drop_link, engine)
    backends = tuple(engine.backends)
    engine.backends[:] = [
        FaultBackend(backend, engine.node, policy, drop_link) for backend in backends
    ]
    for link in engine.links.links():
        channel = link.data.channel
        if not (isinstance(channel, FaultChannel) and channel.policy is policy):
            link.data.channel = FaultChannel(
                channel, engine.node, link.cluster_id, policy, drop_link
            )
    try:
        yield policy
    finally:
        engine.backends[:] = backends
        for link in engine.links.links():
            channel = link.data.channel
            if isinstance(channel, FaultChannel) and channel.policy is policy:
                link.data.channel = channel.inner


def _drop_link(engine: Engine, cluster_id: int) -> None:
    with suppress(LLMException):  # it is gone already
        engine.links.drop(engine.links.get(cluster_id, "drop"), "dropped by a fault policy")
