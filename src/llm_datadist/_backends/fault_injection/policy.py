"""Chooses which transfers fail, and how: rules, a seed, and a record of every decision."""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist._backends.outcomes import Code
from llm_datadist._types.checks import check_instance, wrong_type
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("llm_datadist")

ACTIONS = ("refuse", "fail", "delay", "short", "corrupt", "drop")


@names_calls
@dataclass(frozen=True, slots=True)
class FaultRule:
    """A fault, and the transfers that it applies to.

    Attributes:
        action: refuse: nothing is moved, and the transfer fails with `code`.
            fail: everything is moved, but the transfer fails with `code`.
            delay: the transfer starts `delay_ms` later; it still ends at its deadline.
            short: the bytes up to a random position are moved, and the transfer ends with `code`.
            With code "OK" the data path lies.
            corrupt: everything is moved, but one random byte is changed.
            drop: nothing is moved, the link is dropped, and the transfer fails with PEER_DEAD.
        nth: Only this one of the transfers that the rule fits, counted from 1; None = each.
        chance: Probability of the fault for each of them.
        write: True: only writes (pushes). False: only reads (pulls). None: both.
        cluster_id: Only transfers with this peer; None = all.
        code: Name of a `Code`, for refuse, fail and short.
        delay_ms: For delay.
    """

    action: str
    nth: int | None = None
    chance: float = 1.0
    write: bool | None = None
    cluster_id: int | None = None
    code: str = "SYSTEM"
    delay_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action is {self.action!r}; use one of {', '.join(ACTIONS)}")
        if self.code not in Code.__members__:
            raise ValueError(f"code is {self.code!r}; use one of {', '.join(Code.__members__)}")
        if self.code == "OK" and self.action in {"refuse", "fail"}:
            raise ValueError(f"{self.action} with code OK is no fault; use short or corrupt")

    def fits(self, *, write: bool, cluster_id: int) -> bool:
        """Return whether the rule applies to a transfer."""
        return self.write in {None, write} and self.cluster_id in {None, cluster_id}


@dataclass(frozen=True, slots=True)
class Decision:
    """A fault of one transfer.

    Attributes:
        post: Number of the transfer, counted from 1 over all links and directions.
        write, cluster_id: Direction and peer of that transfer.
        action, code, delay_ms: As in the rule.
        place: Position in the transfer's bytes, from 0 to 1, for short and corrupt.
    """

    post: int
    write: bool
    cluster_id: int
    action: str
    code: str
    delay_ms: float
    place: float


@names_calls
class FaultPolicy:
    """Decides for each transfer whether it gets a fault. Thread-safe.

    The fault of transfer number n depends only on the rules, the seed and the transfers before it:
    the same transfers in the same order get the same faults. If several threads run in another
    order, `replay` repeats the decisions of an earlier run.

    Args:
        rules: The first one that applies to a transfer decides; without one there is no fault.
        seed: Of every random choice.

    Raises:
        TypeError: rules has something else than FaultRules.
    """

    def __init__(self, rules: Iterable[FaultRule] = (), seed: int = 0) -> None:
        if isinstance(rules, FaultRule) or not isinstance(rules, Iterable):
            raise wrong_type("rules", rules, "a list or tuple of FaultRule")
        self.rules: tuple[FaultRule, ...] = tuple(rules)
        for position, rule in enumerate(self.rules):
            check_instance(f"rules[{position}]", rule, FaultRule)
        self.seed = seed
        self._lock = threading.Lock()
        self._fitted: Counter[int] = Counter()
        self._decisions: list[Decision] = []
        self._replayed: dict[int, Decision] | None = None
        self._posts = 0
        self._completions = 0

    @classmethod
    def replay(cls, decisions: Iterable[Decision]) -> Self:
        """Return a policy that repeats earlier decisions, by the number of the transfer."""
        policy = cls()
        policy._replayed = {decision.post: decision for decision in decisions}
        return policy

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Faults so far, in order."""
        with self._lock:
            return tuple(self._decisions)

    @property
    def posts(self) -> int:
        """Number of transfers that were posted."""
        return self._posts

    @property
    def completions(self) -> int:
        """Number of transfers that got their outcome."""
        return self._completions

    def decide(self, *, write: bool, cluster_id: int) -> Decision | None:
        """Count a transfer; return its fault, or None."""
        with self._lock:
            self._posts += 1
            if self._replayed is not None:
                decision = self._replayed.get(self._posts)
            else:
                decision = self._choose(write, cluster_id)
            if decision is not None:
                self._decisions.append(decision)
        if decision is not None:
            logger.info("injects %s (seed %d)", decision, self.seed)
        return decision

    def completed(self) -> None:
        """Count an outcome."""
        with self._lock:
            self._completions += 1

    def _choose(self, write: bool, cluster_id: int) -> Decision | None:
        chosen = None
        for index, rule in enumerate(self.rules):
            if not rule.fits(write=write, cluster_id=cluster_id):
                continue
            self._fitted[index] += 1
            chance = random.Random(f"{self.seed} {self._posts} {index}")
            wanted = rule.nth in {None, self._fitted[index]} and chance.random() < rule.chance
            if wanted and chosen is None:
                chosen = Decision(
                    self._posts,
                    write,
                    cluster_id,
                    rule.action,
                    rule.code,
                    rule.delay_ms,
                    chance.random(),
                )
        return chosen

    def __repr__(self) -> str:
        return f"FaultPolicy(rules={self.rules!r}, seed={self.seed})"
