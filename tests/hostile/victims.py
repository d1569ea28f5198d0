"""Instances with memory that nobody was given, and hostile peers, here or in other processes."""

from __future__ import annotations

import codecs
import os
import random
import re
import secrets
import struct
import threading
import time
from pathlib import Path

import numpy as np
from pages import ForgedPage
from station import Station

from hostile import CHECKSUM, PAGE, PUSH, READ, HostilePeer, Posture
from llm_datadist._registry.records import Added, decode_frames, encode_frame

BLOCKS, WORDS, TENSORS = 4, 512, 4
BLOCK_BYTES = WORDS * 8
SHAPE = {"blocks": BLOCKS, "words": WORDS}
EVERY = list(range(BLOCKS))


class Victim(Station):
    """A station with memory of the heap, beside its cache, that is full of its token."""

    def __init__(self, cluster_id, listen="127.0.0.1:0", **options):
        super().__init__(cluster_id, listen, **SHAPE, sync_kv_timeout=500, **options)
        self.token = secrets.token_bytes(16)
        size = BLOCKS * BLOCK_BYTES
        self.page = np.frombuffer(bytearray(self.token * (size // 16)), np.uint8)

        self.closed = np.frombuffer(bytearray(secrets.token_bytes(16) * (size // 4)), np.uint64)
        self.closed = self.closed.reshape(TENSORS, BLOCKS, WORDS)
        self._outside = self.page.tobytes(), self.closed.tobytes()
        self.manager.register_blocks_cache(
            self._desc, [each.ctypes.data for each in self.closed], remote_accessible=False
        )

    def page_address(self):
        return self.page.ctypes.data

    def closed_addresses(self):
        """Of memory that peers were not given."""
        return [self.page_address(), self.closed.ctypes.data, self.closed[1].ctypes.data]

    def tokens(self):
        return [self.token, self._outside[1][:16]]

    def is_outside_as_it_was(self):
        return (self.page.tobytes(), self.closed.tobytes()) == self._outside

    def closed_entry(self):
        """The entry of the cache that is not accessible."""
        node = self.instance._engine.node.native
        log = node.read_log(0, node.version() & ((1 << 40) - 1))
        return tuple(entries_of(log)[-1].entry)

    def link_ref_of(self, other):
        """The guard of another instance's link to this one, on the page of the other."""
        return tuple(other.instance._engine.links.get(self.cluster_id, "test").data.own_link_ref)

    @staticmethod
    def peak_bytes(*, reset=False):
        """The most memory that this process has had since the last reset."""
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10

    def mark(self):
        return self.token


def entries_of(directory):
    """Return the caches of a directory."""
    return [record for record in decode_frames(directory) if isinstance(record, Added)]


def directory_at(address, entry, key=66, *, shape=(BLOCKS, WORDS), tensors=TENSORS):
    """A directory whose one cache has all its tensors at one address; with its version."""
    record = Added(
        cache_id=1,
        entry=tuple(entry),
        is_blocks=True,
        num_tensors=tensors,
        shape=tuple(shape),
        data_type=10,
        placement=1,
        batch_dim_index=0,
        addrs=struct.pack("<Q", address % 2**64) * tensors,
        accessible=True,
        blocks_key=key,
    )
    log = encode_frame(record)
    return (2 << 40) | len(log), log


class Attacker(HostilePeer):
    """What both the tests and other processes have it do; arguments and results are plain data."""

    page = None

    def set_claim(self, claim):
        self.claim = claim

    def serve_directory(self, address, entry, key):
        self.log = directory_at(address, entry, key)

    def victim_facts(self):
        """What the victim says of itself once it is linked, and its first accessible cache."""
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
        """Ring doorbells for what lies at an address; return the codes.

        Args:
            address: Of bytes that nobody was given.
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
        """READ and CHECKSUM; return the codes."""
        codes = []
        for kind in (READ, CHECKSUM):
            if not self.asking:
                break
            cache = {} if entry is None else {"cache": tuple(entry)}
            codes.append(self.ask(kind, [(address, size)], **cache).code)
        return codes

    # ---- published pages ----

    def forge_page(self, rows, header):
        """Show a page made by hand from the next link on."""
        self.page = ForgedPage(self.node.incarnation, rows, **header)
        self.claim = {
            "host": {
                "page_address": self.page.address,
                "published_fd": self.page.fd,
                "published_bytes": self.page.size,
            },
            "link_ref": (5, 1),
        }

    def forge_many_rows(self, count):
        begins = np.arange(count, dtype=np.uint64) * np.uint64(16) + np.uint64(PAGE)
        self.forge_page(np.stack([begins, begins + np.uint64(8)], axis=1), {})

    def list_ranges(self, index, first, count):
        self.page.list(index, first, count)

    def _show_proof(self, side):
        super()._show_proof(side)
        if self.page is not None:
            self.page.show(5, self.shake.page_proof(side))

    def ring_while_changing(self, address, into, seconds):
        """Ring doorbells for entry 9 while another thread changes what the page says."""
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


def become(user):
    """Be another user from now on, who may not be able to read the interpreter's files."""
    for name in ("idna", "ascii"):
        codecs.lookup(name)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def serve(here, kind, user, arguments, options):
    """Body of another process: an attacker or a victim that does what the test says."""
    if kind == "victim":
        made = Victim(*arguments, **options)
    else:
        made = Attacker(Posture(*arguments), **options)
    if user is not None:
        become(user)
    try:
        here.send("made")
        while True:
            name, *args = here.receive(600)
            try:
                here.send([True, getattr(made, name)(*args)])
            except (OSError, TimeoutError) as error:
                here.send([False, f"{type(error).__name__}: {error}"])
    finally:
        made.close()


class Remote:
    """An attacker or a victim in a process of its own, with the methods of the object there."""

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
