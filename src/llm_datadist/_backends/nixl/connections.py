"""Connections of the engine to its peers: tried in another process, made when first needed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.trial import TrialTimeoutError
from llm_datadist._logs import later

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.nixl.agent import Agent
    from llm_datadist._backends.nixl.metadata import NixlMetadata
    from llm_datadist._backends.nixl.trial import Trial

_TRIAL_S: Final = 10.0


@final
class Connections:
    """How many links use the engine's connection to each peer. Thread-safe."""

    def __init__(self, agent: Agent, trial: Trial) -> None:
        self._agent = agent
        self._trial = trial
        self._lock = threading.Lock()
        self._num_users: Counter[str] = Counter()
        self._leaving: list[tuple[str, Callable[[], bool]]] = []

    def check(self, peer_metadata: NixlMetadata) -> None:
        """Have the trial process load a peer's metadata.

        Raises:
            Unavailable: It refused, ended, or had no time.
        """
        pieces = [peer_metadata.connection, peer_metadata.landing_metadata]
        until = time.monotonic() + _TRIAL_S
        try:
            _, why_not = self._trial.loaded(peer_metadata.agent, list(filter(None, pieces)), until)
        except TrialTimeoutError:
            why_not = "the process that tries it is busy"
        if why_not:
            raise Unavailable(f"NIXL cannot connect: {why_not}")

    def open(self, peer_metadata: NixlMetadata) -> None:
        """Let the engine know a peer; `leave` undoes it.

        Raises:
            NixlError: The engine refuses.
        """
        with later(), self._lock:
            self._agent.load(peer_metadata.connection)
            if peer_metadata.landing_metadata:
                self._agent.load(peer_metadata.landing_metadata)
            self._num_users[peer_metadata.agent] += 1

    def leave(self, peer: str, is_quiet: Callable[[], bool]) -> None:
        """Disconnect a peer when no other link uses it and `is_quiet` says that no request runs."""
        with later(), self._lock:
            self._leaving.append((peer, is_quiet))
            for each in list(self._leaving):
                if each[1]():
                    self._leaving.remove(each)
                    self._disconnect(each[0])

    def _disconnect(self, peer: str) -> None:
        self._num_users[peer] -= 1
        if not self._num_users[peer]:
            del self._num_users[peer]
            self._agent.forget_peer(peer)


@final
@dataclass(eq=False)
class Connection:
    """One link's use of the engine's connection, which is made on first use. Thread-safe.

    Attributes:
        connections: Of the instance.
        peer: Metadata of the peer's backend.
        problem: Why the engine cannot be used on this link, or "".
    """

    connections: Connections
    peer: NixlMetadata
    problem: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False

    def open(self) -> str:
        """Connect, if not yet connected; return the problem."""
        if not self._is_open:
            with self._lock:
                self._open()
        return self.problem

    def _open(self) -> None:
        if not self._is_open and not self.problem:
            try:
                self.connections.open(self.peer)
                self._is_open = True
            except NixlError as error:
                self.problem = f"NIXL cannot connect: {error}"

    def close(self, is_quiet: Callable[[], bool]) -> None:
        """Disconnect when `is_quiet` says that no request of the link runs."""
        if self._is_open:
            self.connections.leave(self.peer.agent, is_quiet)
