"""A hostile peer that does everything at random, by a seed, for some seconds."""

from __future__ import annotations

import contextlib
import random
import time

import msgspec

from llm_datadist._engine.link.messages import (
    Ended,
    EndedTransfer,
    Faulted,
    Lend,
    Marked,
    Release,
    Remapped,
)
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.messages import Notify, Request
from llm_datadist._registry.records import CorruptDirectory
from support.framing import CHUNK
from support.hostile.forgeries import (
    guards_of,
    malformed_requests,
    odd_directories,
    ranges_outside,
    requests_outside,
)
from support.hostile.frames import (
    CONSUME,
    NOTHING,
    OK,
    PUSH,
    READ,
    WRITE,
    frame_of,
    request_of,
)

# What a link that ends in the middle of something raises, of the attacker's own.
ENDED = (OSError, ProtocolError, ValueError, AttributeError, AssertionError, CorruptDirectory)


class Mischief:
    """One run of an attacker.

    Args:
        peer: The attacker; what it shows of itself changes from link to link.
        address: Of the victim; None: the victim dials.
        closed: Addresses of the victim's memory that peers were not given.
        tokens: What that memory is full of.
        seed: Of everything.
    """

    def __init__(self, peer, address, closed, tokens, seed):
        self._peer = peer
        self._address = address
        self._closed = closed
        self._tokens = tokens
        self._chance = random.Random(seed)
        self._facts = None
        self.counts = {"requests": 0, "links": 0, "granted outside": 0, "tokens heard": 0}

    def run(self, seconds):
        """Run until the time is over; return the counts."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._address is None and not self._peer.linked_anew(0.1):
                continue  # what is being set up goes on
            with contextlib.suppress(*ENDED):
                self._link()
                while self._peer.asking and time.monotonic() < deadline:
                    self._act()
                    if self._chance.random() < 0.02:
                        break
            self._look()
            self._peer.unlink()
        return self.counts

    def _link(self):
        peer, chance = self._peer, self._chance
        if self._address is not None:
            self.disguise()
            peer.dial(self._address, num_lanes=chance.randint(1, 4))
        self.counts["links"] += 1
        self._facts = peer.victim_facts()

    def disguise(self):
        """Choose the claims of the next link."""
        peer, chance = self._peer, self._chance
        peer.drop_page()
        rows = [[begin, begin + 4096] for begin in sorted(self._closed)]
        ways = ["lanes", "honest", "page", "odd page"]
        if peer.victim is not None:
            ways += ["victim", "victim, its incarnation"]
        way = chance.choice(ways)
        if way == "lanes":
            peer.claim = {"host": None}
        elif way == "honest":
            peer.claim = {"host": {}}
        elif way == "page":
            peer.forge_page(rows, {})
        elif way == "odd page":
            field = chance.choice(["guards", "ranges", "log"])
            peer.forge_page(rows, {field: chance.randrange(1 << chance.randint(1, 64))})
        else:
            index = chance.choice([0, 1, 2, 3, chance.randrange(1 << 20)])
            ref = chance.choice([("victim", "victim"), (index, 1)])
            peer.claim = {"host": "victim", "link_ref": ref}
            if way != "victim":
                peer.claim["incarnation"] = "victim"

    def _act(self):
        self.counts["requests"] += 1
        act = self._chance.choice(
            [self._outside, self._malformed, self._guard, self._ring, self._tell, self._noise]
            + [self._lie] * 2
        )
        act()

    def _asked(self, *args, **options):
        answer = self._peer.ask(*args, **options)
        if answer.code == OK:
            self.counts["granted outside"] += 1

    def _outside(self):
        args, options = self._chance.choice(list(requests_outside(self._facts, self._closed)))
        self._asked(*args, **options)

    def _malformed(self):
        args, options = self._chance.choice(list(malformed_requests(self._facts)))
        self._asked(*args, **options)

    def _guard(self):
        guard = self._chance.choice(guards_of(self._facts))
        if self._chance.random() < 0.5:
            self._asked(CONSUME, key=guard)
            return
        address, length = self._chance.choice(ranges_outside(self._facts, self._closed))
        self._asked(READ, [(address, length)], cache=guard)

    def _ring(self):
        """Send doorbells for a closed address, with any entry."""
        chance, peer = self._chance, self._peer
        page = peer.page  # the next link may have another one
        if page is not None:
            page.scramble(chance)
            page.list(9, chance.randrange(4), chance.randrange(5))
        into = self._facts["address"]
        guard = chance.choice([(9, 1), *guards_of(self._facts)])
        begin = chance.choice([0, into, peer.memory.ctypes.data, *self._closed])
        offset = (chance.choice(self._closed) - begin) % 2**64
        peer.ask(PUSH, [(into, 4096, offset)], key=guard)  # may reach memory of its own

    def _tell(self):
        chance = self._chance
        guard = chance.choice([g for g in guards_of(self._facts) if 0 <= g[1] < 2**63])
        ranges = tuple(
            r for r in chance.choices(ranges_outside(self._facts, self._closed), k=3) if r[0] >= 0
        )
        body = msgspec.msgpack.encode(
            chance.choice(
                [
                    Faulted(guard, ranges),
                    Marked(guard, ranges),
                    Release(chance.randrange(9)),
                    Remapped(ranges),
                    Lend(chance.randrange(9), (1,), None, 1000),
                    Ended((EndedTransfer("r", None, "pull", "tcp", 1, 0, 1 << 62, 0),) * 128),
                ]
            )
        )
        if chance.random() < 0.2:
            body = bytes(each ^ (chance.random() < 0.05) for each in body)
        number = chance.randrange(1 << 20)
        self._peer.say(chance.choice([Notify(body=body), Request(id=number, body=body)]))

    def _noise(self):
        """Send frames with correct tags and random changes."""
        chance, peer = self._chance, self._peer
        kind = chance.choice([READ, WRITE, PUSH, CONSUME])
        tail = (0,) if kind == PUSH else ()
        data = bytearray(
            request_of(kind, [(chance.choice(self._closed), 64, *tail)], NOTHING, NOTHING, {})
        )
        for _ in range(chance.randint(1, 6)):
            at = chance.choice([i for i in range(len(data)) if not 8 <= i < 12])
            data[at] = chance.randrange(256)
        lane = peer.asking[-1]
        peer.asking.remove(lane)
        lane.settimeout(0.05)
        with contextlib.suppress(*ENDED):
            lane.sendall(bytes(data))
            lane.sendall(frame_of(CHUNK, b"\xee" * 64))
            peer.heard.append(lane.recv(1 << 20))
        lane.close()

    def _lie(self):
        """Choose the answers to the victim's requests."""
        chance = self._chance
        address, entry = chance.choice(self._closed), self._facts["entry"]
        self._peer.log = chance.choice(list(odd_directories(address, entry)))
        if chance.random() < 0.5:
            self._peer.serve_directory(address, entry, 66)
        self._peer.answers = {}
        if chance.random() < 0.3:
            self._peer.answers = {chance.randint(1, 9): (chance.randint(1, 14), b"")}

    def _look(self):
        heard = b"".join(self._peer.heard)
        self._peer.heard.clear()
        self._peer.said.clear()
        self.counts["tokens heard"] += sum(token in heard for token in self._tokens)
