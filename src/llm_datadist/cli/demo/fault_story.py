"""Follows the fault that --inject-fault makes: injected, met, repaired, resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist.cli.demo import messages as m
from llm_datadist.cli.demo.results import FaultResult
from llm_datadist.cli.demo.settings import DemoError

if TYPE_CHECKING:
    from llm_datadist.cli.demo.processes import Worker

Chapter = m.FaultInjected | m.FaultMet | m.Repaired | m.Resumed


class FaultStory:
    """What the workers said of the fault; also passes it on between them, as a router would."""

    def __init__(self) -> None:
        self._injected: m.FaultInjected | None = None
        self._met: m.FaultMet | None = None
        self._repaired: m.Repaired | None = None
        self._resumed: m.Resumed | None = None

    def follow(self, message: Chapter, prefill: Worker, decode: Worker) -> None:
        """Take one message, and tell the other worker what follows from it."""
        match message:
            case m.FaultInjected():
                self._injected = message
            case m.FaultMet(request):
                if self._met is not None:
                    raise DemoError(f"the repair did not help: {message.text}")
                self._met = message
                prefill.send(m.Repair(request, message.lost))
            case m.Repaired(request):
                self._repaired = message
                decode.send(m.Resume(request))
            case m.Resumed():
                self._resumed = message

    def result(self, request: str, prompt_blocks: int, others_ns: list[int]) -> FaultResult:
        """Put it together.

        Args:
            request: Name of the request that was hit.
            prompt_blocks: Its blocks.
            others_ns: When other requests got their tokens.

        Raises:
            DemoError: The fault was not noticed.
        """
        injected, met = self._injected, self._met
        repaired, resumed = self._repaired, self._resumed
        if injected is None or met is None or repaired is None or resumed is None:
            raise DemoError("the fault was injected, and no transfer has met it")
        return FaultResult(
            request=request,
            lost=injected.lost,
            how=injected.how,
            status=met.status,
            text=met.text,
            named=met.lost,
            arrived_blocks=prompt_blocks - len({one.block for one in met.lost}),
            remap_ms=repaired.remap_ms,
            recompute_ms=repaired.recompute_ms,
            recomputed_tokens=repaired.tokens,
            pulled_blocks=resumed.blocks,
            pull_ms=resumed.pull_ms,
            recovery_ms=(resumed.at_ns - met.at_ns) / 1e6,
            others_tokens=sum(met.at_ns <= at_ns <= resumed.at_ns for at_ns in others_ns),
        )
