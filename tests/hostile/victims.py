"""Instances with memory that nobody was given, and hostile peers, here or in other processes."""

from __future__ import annotations

import codecs
import os
import secrets
import struct

import numpy as np
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

    def page_address(self):
        return self.page.ctypes.data

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


def page_of(address):
    return address // PAGE * PAGE
