"""Describes the caches in the directories of peers, for `describe_remote_caches`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._backends.outcomes import Code
from llm_datadist._control.sockets import printed
from llm_datadist._engine.link.data_plane import LookupFailedError
from llm_datadist._engine.transfer.errors import Failure, corrupt_directory, failure
from llm_datadist._errors import LLMException, restate
from llm_datadist._plan import NO_PLAN
from llm_datadist._registry import CorruptDirectory

if TYPE_CHECKING:
    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.link.data_plane import DataPlane
    from llm_datadist._links import Link

__all__ = ["RemoteDirectories"]

_OPERATION: Final = "describe_remote_caches"
_REASON_SECONDS: Final = 0.1


@final
class RemoteDirectories:
    """Describes the caches that the peers of one instance have. Thread-safe."""

    def __init__(self, instance: Instance) -> None:
        self._life = instance.life
        self._links = instance.links
        self._statuses = instance.config.statuses
        self._timeout_ms = instance.config.sync_timeout_ms

    def describe(self, cluster_id: int) -> list[dict[str, object]]:
        """See LLMDataDist.describe_remote_caches."""
        try:
            return self._described(self._links.get(cluster_id, _OPERATION))
        except LLMException as error:
            restate(error, self._statuses)
            raise

    def _described(self, link: Link) -> list[dict[str, object]]:
        data: DataPlane = link.data
        deadline_ns = time.monotonic_ns() + self._timeout_ms * 1_000_000
        try:
            data.directory.refresh(_OPERATION, deadline_ns)
            return [cache.describe() for cache in data.directory.caches()]
        except LookupFailedError as error:
            raise self._failed(link, error.outcome) from error
        except CorruptDirectory as error:
            raise corrupt_directory(_OPERATION, link.cluster_id, error) from error

    def _failed(self, link: Link, outcome: Outcome) -> LLMException:
        alive = not link.lost.is_set() and link.data.peer_end_is_open()
        ended = not alive or outcome.code in {Code.PEER_DEAD, Code.CANCELLED}
        if ended and not self._life.closing:
            link.lost.wait(_REASON_SECONDS)  # lanes notice before the control connection
        return failure(
            outcome,
            Failure(
                operation=_OPERATION,
                cluster_id=link.cluster_id,
                peer=f"cluster {link.cluster_id} at {printed(link.address)}",
                timeout_ms=self._timeout_ms,
                plan=NO_PLAN,
                remote_name="the peer's directory",
                finalizing=self._life.closing,
                peer_alive=alive,
                link_end=link.reason,
            ),
        )
