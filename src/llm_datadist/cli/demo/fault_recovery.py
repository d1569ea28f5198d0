"""Router's part of --inject-fault: the fault is injected, detected, repaired, and resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist.cli.demo import messages as m
from llm_datadist.cli.demo.results import FaultResult
from llm_datadist.cli.demo.settings import DemoError

if TYPE_CHECKING:
    from llm_datadist.cli.demo.processes import Worker

FaultEvent = m.FaultInjected | m.FaultDetected | m.Repaired | m.Resumed


class FaultRecovery:
    """Collects the workers' reports on the fault, and routes them."""

    def __init__(self) -> None:
        self._injected: m.FaultInjected | None = None
        self._detected: m.FaultDetected | None = None
        self._repaired: m.Repaired | None = None
        self._resumed: m.Resumed | None = None

    def follow(self, message: FaultEvent, prefill: Worker, decode: Worker) -> None:
        """Store one report, and send the next step to the other worker."""
        match message:
            case m.FaultInjected():
                self._injected = message
            case m.FaultDetected(request):
                if self._detected is not None:
                    raise DemoError(f"the repair did not help: {message.text}")
                self._detected = message
                prefill.send(m.Repair(request, message.lost))
            case m.Repaired(request):
                self._repaired = message
                decode.send(m.Resume(request))
            case m.Resumed():
                self._resumed = message

    def result(self, request: str, prompt_blocks: int, others_ns: list[int]) -> FaultResult:
        """Return the collected result.

        Args:
            request: Name of the request with the fault.
            prompt_blocks: Number of its blocks.
            others_ns: When other requests got their tokens.

        Raises:
            DemoError: The fault was not detected.
        """
        injected, detected = self._injected, self._detected
        repaired, resumed = self._repaired, self._resumed
        if injected is None or detected is None or repaired is None or resumed is None:
            raise DemoError("the fault was injected, but no transfer has detected it")
        return FaultResult(
            request=request,
            lost=injected.lost,
            how=injected.how,
            status=detected.status,
            text=detected.text,
            named=detected.lost,
            arrived_blocks=prompt_blocks - len({one.block for one in detected.lost}),
            remap_ms=repaired.remap_ms,
            recompute_ms=repaired.recompute_ms,
            recomputed_tokens=repaired.tokens,
            pulled_blocks=resumed.blocks,
            pull_ms=resumed.pull_ms,
            recovery_ms=(resumed.at_ns - detected.at_ns) / 1e6,
            others_tokens=sum(detected.at_ns <= at_ns <= resumed.at_ns for at_ns in others_ns),
        )
