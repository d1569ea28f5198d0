"""Which bytes and which statuses are right, given what happened before, during and after a call."""

import time
from typing import NamedTuple

from chaos.ledger import is_quiet
from chaos.words import tags_of, told

SETTLED_S = 3.0
BROKEN_LINK = {"LLM_LINK_FAILED", "LLM_NOT_YET_LINK"}


class Situation(NamedTuple):
    """The ledger about one cache of a peer at one moment."""

    circumstances: tuple
    change: int
    remapping: int
    begun: int
    over: int
    life: int


def situation(ledger, local, peer, name):
    """Read the ledger. What is over is read first: what ends later is not held against a call."""
    over = int(ledger.over[peer, name])
    return Situation(
        ledger.circumstances(local, peer),
        int(ledger.change[peer, name]),
        int(ledger.remapping[peer, name]),
        int(ledger.begun[peer, name]),
        over,
        int(ledger.life[peer]),
    )


def is_stable(before, after):
    """Whether the peer's cache was registered, and its process undisturbed, all the time."""
    trouble = before.circumstances[1]
    same = (before.change, before.life, trouble) == (
        after.change,
        after.life,
        after.circumstances[1],
    )
    return same and not before.change & 1 and not trouble & 1


def check_source(data, places, peer, name, before, after):
    """Say what is wrong with bytes that a pull brought; "" = nothing.

    They must all be of one generation that was not over when the call began. While an owner
    replaces pages under a registered cache, it changes the bytes itself, from one generation to
    the next.
    """
    tags = tags_of(data, places)
    if tags is None:
        return f"torn: words of other places, {[told(word) for word in data.flat[:4]]}"
    found = [told(tag) for tag in tags]
    if any(each[:2] != (peer, name) for each in found):
        return f"bytes of another cache: {found}"
    generations = sorted(each[2] for each in found)
    if generations[0] <= before.over:
        return f"stale: generations {generations}, {before.over} was over before the call"
    if generations[-1] > after.begun:
        return f"generations {generations} before they were begun ({after.begun})"
    mixing = before.remapping & 1 or before.remapping != after.remapping
    if len(generations) > 1 and not (mixing and generations[-1] - generations[0] == 1):
        return f"torn: generations {generations}"
    return ""


class Links:
    """What one actor knows of its links: whether nothing has happened to one for a while."""

    def __init__(self):
        self._since = {}

    def broke_by_itself(self, peer, before, after):
        """Whether a link that had worked ended though nothing happened to it for some time."""
        known = self._since.get(peer)
        if known is None or known[0] != before.circumstances != ():
            return False
        unchanged = before.circumstances == after.circumstances and is_quiet(before.circumstances)
        return unchanged and time.monotonic() - known[1] > SETTLED_S

    def worked(self, peer, before, after):
        """A call went well."""
        same = before.circumstances == after.circumstances
        known = self._since.get(peer)
        if same and (known is None or known[0] != after.circumstances):
            self._since[peer] = after.circumstances, time.monotonic()

    def broke(self, peer):
        self._since.pop(peer, None)


def check_status(status, before, after, links, peer, *, raw=False):
    """Say what is wrong with a transfer's failing so; "" = the API allows it here."""
    stable = is_stable(before, after)
    if status in BROKEN_LINK:
        if links.broke_by_itself(peer, before, after):
            return "the link ended though nothing happened to it"
    elif status == "LLM_KV_CACHE_NOT_EXIST":
        if stable:
            return "the cache was registered all the time"
    elif status == "LLM_SUSPECT_REMOTE_ERROR":
        if stable:
            return "the peer's memory was sound all the time"
    elif status == "LLM_PARAM_INVALID":
        if stable or not raw:
            return "the arguments were right"
    elif status != "LLM_TIMEOUT":
        return "no status of this situation"
    return ""
