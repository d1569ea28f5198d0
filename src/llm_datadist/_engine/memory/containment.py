"""After a memory fault, move everything that can be accessed and name the rest.

The data plane ends an operation at the first descriptor that it cannot access. The operation is
then split around that descriptor, and the descriptor by halves down to single slots or blocks. So
one bad page costs a few more operations, and every block is moved or named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm_datadist._backends.outcomes import Code, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llm_datadist._plan import Layout, Plan
    from llm_datadist._plan.layout import Piece

    Words = NDArray[np.uint64]
    Move = Callable[[Words, Words, Words], Outcome]

__all__ = ["FAULTS", "BadRange", "Containment"]

FAULTS = frozenset({Code.LOCAL_FAULT, Code.REMOTE_FAULT})


class BadRange(NamedTuple):
    """Memory that cannot be accessed; `piece` is None if its cache is unknown."""

    is_local: bool
    addr: int
    size: int
    piece: Piece | None


@dataclass(slots=True)
class Containment:
    """Finishes one transfer after a memory fault.

    Attributes:
        move: Moves some descriptors (local, remote, length) and returns the outcome.
        local, remote: Slots or blocks of each side; None if unknown.
        found: The memory at fault, in the order of discovery.
    """

    move: Move
    local: Layout | None
    remote: Layout | None
    found: list[BadRange] = field(default_factory=list)

    def finish(self, plan: Plan, outcome: Outcome) -> Outcome | None:
        """Move all that can be moved, and find all that cannot.

        Args:
            plan: The whole transfer.
            outcome: Its outcome, a fault.

        Returns:
            None when every block was moved or is in `found`, else the outcome that ended the work
            (a deadline, a dead peer).
        """
        spans: list[tuple[int, int, Outcome | None]] = [(0, len(plan.length), outcome)]
        while spans:
            first, last, known = spans.pop()
            if first == last:
                continue
            met = known or self.move(
                plan.local[first:last], plan.remote[first:last], plan.length[first:last]
            )
            if met.code == Code.OK:
                continue
            index = first + met.descriptor
            if met.code not in FAULTS or not first <= index < last:
                return met
            ended = self._divide(
                int(plan.local[index]), int(plan.remote[index]), int(plan.length[index]), met
            )
            if ended is not None:
                return ended
            spans += [(index + 1, last, None), (first, index, None)]
        return None

    def _divide(
        self, local_addr: int, remote_addr: int, size: int, outcome: Outcome
    ) -> Outcome | None:
        """Do the same for the slots or blocks of one descriptor."""
        cuts = self._cuts(local_addr, remote_addr, size, is_local=outcome.code == Code.LOCAL_FAULT)
        spans: list[tuple[int, int, Outcome | None]] = [(0, len(cuts) - 1, outcome)]
        while spans:
            low, high, known = spans.pop()
            offset, part = cuts[low], cuts[high] - cuts[low]
            if known is None:
                words = np.array((local_addr + offset, remote_addr + offset, part), np.uint64)
                known = self.move(words[:1], words[1:2], words[2:])
            if known.code == Code.OK:
                continue
            if known.code not in FAULTS:
                return known
            if high - low == 1:
                is_local = known.code == Code.LOCAL_FAULT
                self._name(
                    (local_addr if is_local else remote_addr) + offset, part, is_local=is_local
                )
            else:
                middle = (low + high) // 2
                spans += [(middle, high, None), (low, middle, None)]
        return None

    def _cuts(self, local_addr: int, remote_addr: int, size: int, *, is_local: bool) -> list[int]:
        """Return the offsets of the slots or blocks in a descriptor, and of its end."""
        sides = [(self.local, local_addr), (self.remote, remote_addr)]
        for layout, addr in sides if is_local else reversed(sides):
            if layout is not None:
                starts = {piece.addr - addr for piece in layout.locate(addr, size)}
                return sorted(starts | {0, size})
        return [0, size]

    def _name(self, addr: int, size: int, *, is_local: bool) -> None:
        layout = self.local if is_local else self.remote
        pieces = [] if layout is None else list(layout.locate(addr, size))
        if not pieces:
            self.found.append(BadRange(is_local, addr, size, None))
        self.found += [BadRange(is_local, piece.addr, piece.size, piece) for piece in pieces]
