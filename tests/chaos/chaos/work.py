"""What the actors of one process share: the instance, the ledger, the journal, and how to call."""

import random
import threading
import time
from typing import NamedTuple

from llm_datadist import LLMException

OK = "LLM_SUCCESS"
TIMEOUT_S = 0.5  # sync_kv_timeout
LATE_S = 0.1
LINK_TIMEOUT_S = 3.0
CALL_S = TIMEOUT_S + LATE_S


class Answer(NamedTuple):
    """How a call ended."""

    status: str
    value: object = None
    text: str = ""
    faults: tuple = ()

    @property
    def ok(self):
        return self.status == OK


class Work:
    """See the module.

    Attributes:
        slot: Number of the process; its cluster id is one more.
        noise_s: What a busy machine may add to a bound.
        calling: Per actor, what it calls since when (ticks of the watchdog).
    """

    def __init__(self, instance, ledger, journal, slot, plan, options):
        self.instance = instance
        self.manager = instance.cache_manager
        self.ledger = ledger
        self.journal = journal
        self.slot = slot
        self.peers = [each for each in range(options["processes"]) if each != slot]
        self.noise_s = options["noise_s"]
        self.pace = options["pace"]
        self.takes = options["takes"]
        self.raw = options["raw"]
        self.directory = options["directory"]
        self.calling = {}
        self.ticks = 0
        self.over = threading.Event()
        self._plan = plan

    def chance(self, actor):
        """The random numbers of an actor: the same for the same seed, slot and life."""
        return random.Random(f"{self._plan} {actor}")

    @property
    def stopped(self):
        return self.over.is_set()

    def pause(self, seconds):
        self.over.wait(seconds * self.pace)

    def call(self, actor, operation, bound_s, function, *args, **details):
        """Make a call that has to end in time, by a status if not well."""
        trouble = int(self.ledger.trouble[self.slot])
        self.calling[actor] = operation, self.ticks
        began = time.monotonic()
        try:
            answer = Answer(OK, function(*args))
        except LLMException as error:
            answer = Answer(error.status_code.name, None, str(error), error.faults)
            error.__traceback__ = None
        seconds = time.monotonic() - began
        del self.calling[actor]
        if trouble & 1 or trouble != int(self.ledger.trouble[self.slot]):
            late_s = -bound_s  # was frozen itself
        else:
            late_s = seconds - bound_s
        self.journal.call(actor, operation, answer.status, seconds, late_s, details)
        if late_s > self.noise_s:
            self.journal.violation(
                "late", actor=actor, call=operation, seconds=seconds, bound=bound_s, **details
            )
        return answer
