"""Schedule the dials of domains in rounds: one round per peer at a time, 16 peers in parallel."""

from __future__ import annotations

import logging
import threading
import time
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.backoff import Backoff
from llm_datadist._control.threads import start
from llm_datadist._control.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["DialRounds", "NextRound", "pauses"]

logger = logging.getLogger("llm_datadist")

SETUPS_AT_ONCE: Final = 16
_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 2.0
_GROWTH: Final = 1.06  # a pause is about 6 % of the time for which the peer has not come
_PAUSE_PER_ROUND: Final = 4.0


def pauses() -> Backoff:
    """Return the pauses between the rounds of one peer while they make no progress."""
    return Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _GROWTH)


class NextRound(Enum):
    """What a round wants next."""

    NONE = auto()
    SOON = auto()  # it has made progress: pauses start short again
    LATER = auto()


@final
class DialRounds:
    """Runs rounds of dialing on its own threads, which end when there is no work.

    A round serves all pending domains of one peer in turn, so that they share its link, and an
    unreachable peer costs one dial per round. The pause between two rounds of a peer leaves the
    threads to other peers. It is short at first because callers wait for the domain, grows while
    rounds make no progress, so that a peer that does not come is not dialed a thousand times, and
    is longer after rounds that take long.

    Args:
        run_round: Called with a peer's cluster id; returns whether another round is wanted.
    """

    def __init__(self, run_round: Callable[[int], NextRound]) -> None:
        self._run_round = run_round
        self._workers = Workers("llm-datadist-domains", SETUPS_AT_ONCE)
        self._changed = threading.Condition()
        self._due: dict[int, float] = {}  # when the next round of a peer starts
        self._backoffs: dict[int, Backoff] = {}  # of peers with a round that runs or waits
        self._busy: set[int] = set()
        self._scheduling = False
        self._closed = False

    def wake(self, peer_id: int) -> None:
        """Start a round for this peer as soon as possible.

        Raises:
            LLMException: LLM_FAILED: no thread can be started.
        """
        with self._changed:
            if self._closed:
                return
            if not self._scheduling:
                name = "llm-datadist-domains"
                start(threading.Thread(target=self._schedule, name=name, daemon=True), "link")
                self._scheduling = True  # the new thread waits for the lock
            self._backoffs[peer_id] = pauses()
            self._due[peer_id] = 0.0
            self._changed.notify_all()

    def close(self) -> None:
        """Start no further round; running ones end by themselves. Idempotent."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify_all()
        self._workers.dismiss()

    def _schedule(self) -> None:
        with self._changed:
            while not self._closed and (self._due or self._busy):
                now = time.monotonic()
                waits = [due - now for peer, due in self._due.items() if peer not in self._busy]
                if not waits or min(waits) > 0:
                    self._changed.wait(min(waits, default=None))
                    continue
                for peer_id, due in list(self._due.items()):
                    if due <= now and peer_id not in self._busy:
                        del self._due[peer_id]
                        self._busy.add(peer_id)
                        served = self._workers.submit(self._serve, peer_id)
                        served.add_done_callback(partial(self._served, peer_id))
            self._scheduling = False

    def _served(self, peer_id: int, round_: Future[None]) -> None:
        """Schedule another round if there was no thread for this one."""
        error = round_.exception()
        if error is None:
            return
        logger.warning("cluster %d cannot be dialed now, it is dialed later: %s", peer_id, error)
        with self._changed:
            self._busy.discard(peer_id)
            if not self._closed:
                self._due.setdefault(peer_id, time.monotonic() + _LONGEST_PAUSE_SECONDS)
            self._changed.notify_all()

    def _serve(self, peer_id: int) -> None:
        wanted = NextRound.LATER
        begun = time.monotonic()
        try:
            wanted = NextRound.NONE if self._closed else self._run_round(peer_id)
        except Exception:
            logger.exception("a round of dialing cluster %d failed", peer_id)
        finally:
            ended = time.monotonic()
            with self._changed:
                self._busy.discard(peer_id)
                if wanted is not NextRound.NONE and not self._closed:
                    if wanted is NextRound.SOON:
                        self._backoffs[peer_id].reset()
                    pause = max(self._backoffs[peer_id].next(), _PAUSE_PER_ROUND * (ended - begun))
                    self._due.setdefault(peer_id, ended + min(pause, _LONGEST_PAUSE_SECONDS))
                elif peer_id not in self._due:
                    self._backoffs.pop(peer_id, None)
                self._changed.notify_all()
