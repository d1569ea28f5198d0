"""Hostile peers and their victims, in this or other processes."""

from __future__ import annotations

import codecs
import os
import random
import threading
import time

import numpy as np

from support.hostile.frames import CHECKSUM, PAGE, PUSH, READ
from support.hostile.mischief import Mischief
from support.hostile.pages import ForgedPage
from support.hostile.peer import HostilePeer, Posture
from support.hostile.victims import BLOCK_BYTES, BLOCKS, Victim, directory_at, entries_of


class Attacker(HostilePeer):
    """A hostile peer with commands for tests; arguments and results are plain data."""

    page = None

    def set_claim(self, claim):
        self.claim = claim

    def serve_directory(self, address, entry, key):
        self.log = directory_at(address, entry, key)

    def victim_facts(self):
        """Return the victim's link data and its first accessible cache."""
        (cache, *_) = entries_of(self.read_directory())
        return {
            "host": self.victim_host(),
            "incarnation": self.victim[1],
            "link_ref": self.victim_endpoint().link_ref,
            "entry": cache.entry,
            "address": int.from_bytes(cache.addrs[:8], "little"),
            "bytes": cache.num_tensors * BLOCKS * BLOCK_BYTES,
        }

    def ring_for(self, address, into, keys, begins):
        """Send doorbells for an address; return the codes.

        Args:
            address: Of bytes that peers may not access.
            into: Address of an accessible cache of the victim's.
            keys: Guards, one after the other, that the doorbells name.
            begins: Where the ranges of such an entry may begin: offsets count from there.
        """
        codes = []
        for key in keys:
            for begin in begins:
                offset = (address - begin) % 2**64
                if not self.asking:
                    return codes
                answer = self.ask(PUSH, [(into, BLOCK_BYTES, offset)], key=tuple(key))
                codes.append(answer.code)
        return codes

    def read(self, address, size, entry=None):
        """Send READ and CHECKSUM; return the codes."""
        codes = []
        for kind in (READ, CHECKSUM):
            if not self.asking:
                break
            cache = {} if entry is None else {"cache": tuple(entry)}
            codes.append(self.ask(kind, [(address, size)], **cache).code)
        return codes

    # ---- published pages ----

    def forge_page(self, rows, header):
        """Show a forged published page from the next link on."""
        self.drop_page()
        self.page = ForgedPage(self.node.incarnation, rows, **header)
        self.claim = {
            "host": {
                "page_address": self.page.address,
                "published_fd": self.page.fd,
                "published_bytes": self.page.size,
            },
            "link_ref": (5, 1),
        }

    def drop_page(self):
        if self.page is not None:
            self.page.close()
            self.page = None

    def forge_many_rows(self, count):
        begins = np.arange(count, dtype=np.uint64) * np.uint64(16) + np.uint64(PAGE)
        self.forge_page(np.stack([begins, begins + np.uint64(8)], axis=1), {})

    def close(self):
        super().close()
        self.drop_page()

    def list_ranges(self, index, first, count):
        self.page.list(index, first, count)

    def _show_proof(self, side):
        super()._show_proof(side)
        if self.page is not None:
            self.page.show(5, self.shake.page_proof(side))

    def ring_while_changing(self, address, into, seconds):
        """Send doorbells for entry 9 while another thread changes the page."""
        chance = random.Random(1)
        ended = threading.Event()

        def change():
            while not ended.is_set():
                self.page.scramble(chance)
                self.page.list(9, chance.randrange(70), chance.randrange(70))

        thread = threading.Thread(target=change)
        thread.start()
        codes = set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.asking:
            codes.update(self.ring_for(address, into, [(9, 1), (9, 3)], [address - 8, 0]))
        ended.set()
        thread.join()
        return list(codes)

    def own_facts(self):
        return {"entry": self.entry, "address": self.memory.ctypes.data, "pid": os.getpid()}

    def has_heard(self, token):
        return token in b"".join(self.heard)

    def lanes_left(self):
        return len(self.asking)


class Rogue(Attacker):
    """An attacker that acts by itself."""

    def linked_anew(self, seconds):
        """Wait until the victim has dialed again."""
        if not self._linked.wait(seconds):
            return False
        self._linked.clear()
        return True

    def misbehave(self, address, closed, tokens, seconds, seed):
        """See `Mischief`; the address is None when the victim dials."""
        mischief = Mischief(self, address, closed, tokens, seed)
        self.patience_s = 0.2
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if address is None:
            self.before_endpoint = mischief.disguise
        return mischief.run(seconds)


def become(user):
    """Become another user, who may be unable to read the interpreter's files."""
    for name in ("idna", "ascii"):
        codecs.lookup(name)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def serve(member, kind, user, arguments, options):
    """Body of another process: an attacker or a victim that executes the test's commands."""
    if kind == "victim":
        made = Victim(*arguments, **options)
    else:
        made = Rogue(Posture(*arguments), **options)
    if user is not None:
        become(user)
    try:
        member.send("made")
        while True:
            name, *args = member.receive(600)
            try:
                member.send([True, getattr(made, name)(*args)])
            except (OSError, TimeoutError) as error:
                member.send([False, f"{type(error).__name__}: {error}"])
    finally:
        made.close()


class Remote:
    """Proxy of an attacker or a victim in another process."""

    def __init__(self, group, kind, *arguments, user=None, **options):
        self.peer = group.start(serve, kind, user, list(arguments), options)
        assert self.peer.receive() == "made"

    def __getattr__(self, name):
        def call(*args):
            self.peer.send([name, *args])
            done, value = self.peer.receive()
            if not done:
                raise PermissionError(value)
            return value

        return call
