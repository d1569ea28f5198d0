"""Hand-made frames of lanes, with tags computed from the lane's keys.

Tests write frames as docs/design/wire-format.md has them, without tags; a `FramedSocket` puts the
tags in on the way out, and checks them and takes them out on the way in.
"""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

from llm_datadist import _native

FRAMES_H = Path(__file__).parents[2] / "native" / "wire" / "frames.h"


def _constant(name):
    """Return a number that the native core defines, so that forged frames follow every change."""
    return int(re.search(rf"\b{name} = (\w+)[;,]", FRAMES_H.read_text())[1], 0)


MAGIC, FRAME_VERSION = _constant("kMagic"), _constant("kVersion")
HEADER_BYTES, TAG_BYTES = 16, 16
CHUNK, OUTCOME = 16, 17
WITH_ANSWER = (6, 8, 10)  # READ_LOG, CHECKSUM, GATHER: the tag of the outcome covers their chunk
_MAGIC = struct.pack("<I", MAGIC)
_MASK = (1 << 64) - 1
NO_KEY = bytes(16)


def lane_of(sock, *, clock_offset_ns=0):
    """Return the native core's end of a lane whose keys are zeroes; the socket's owner changes."""
    return _native.LaneSocket(sock.detach(), NO_KEY, NO_KEY, clock_offset_ns)


def header_of(kind, size, *, flags=0, sequence=1, magic=MAGIC, version=FRAME_VERSION):
    """Return the header of a frame whose body has `size` bytes."""
    return struct.pack("<IBBHII", magic, version, kind, flags, size, sequence)


def siphash(key, data):
    """SipHash-2-4 with 128 bits of output."""
    k0, k1 = struct.unpack("<2Q", key)
    v = [
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D ^ 0xEE,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    ]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        _rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xEE
    _rounds(v, 4)
    low = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    _rounds(v, 4)
    return struct.pack("<2Q", low, v[0] ^ v[1] ^ v[2] ^ v[3])


def _rotated(word, by):
    return (word << by | word >> (64 - by)) & _MASK


def _rounds(v, count):
    for _ in range(count):
        v[0] = (v[0] + v[1]) & _MASK
        v[1] = _rotated(v[1], 13) ^ v[0]
        v[0] = _rotated(v[0], 32)
        v[2] = (v[2] + v[3]) & _MASK
        v[3] = _rotated(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & _MASK
        v[3] = _rotated(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & _MASK
        v[1] = _rotated(v[1], 17) ^ v[2]
        v[2] = _rotated(v[2], 32)


class Tags:
    """The tags of one direction of a lane."""

    def __init__(self, key=NO_KEY):
        self.key = key
        self.count = 0
        self.answer = None  # what came in chunks, where the tag of an outcome covers it

    def next(self, frame):
        """Return the tag of the next frame: its header, and its body unless it is a CHUNK."""
        if frame[5:6] == bytes([OUTCOME]) and self.answer is not None:
            frame += self.answer
        tag = siphash(self.key, struct.pack("<Q", self.count) + frame)
        self.count += 1
        return tag

    def expect(self, kind):
        """Record the kind of request that the next frames answer."""
        self.answer = b"" if kind in WITH_ANSWER else None

    def pass_on(self, payload):
        """Record the payload of a chunk."""
        if self.answer is not None:
            self.answer += payload

    def seal(self, data):
        """Put tags into the frames at the beginning of `data`; other bytes are unchanged."""
        out = b""
        while len(data) >= HEADER_BYTES and data[:4] == _MAGIC:
            end = HEADER_BYTES + int.from_bytes(data[8:12], "little")
            covered = HEADER_BYTES if data[5] == CHUNK else end
            tag = self.next(data[:covered])
            if data[5] == CHUNK:
                self.pass_on(data[HEADER_BYTES:end])
            out += data[:HEADER_BYTES] + tag + data[HEADER_BYTES:end]
            data = data[end:]
        return out + data


class FramedSocket:
    """A connected socket with one end of a lane; otherwise like a socket."""

    def __init__(self, sock, send_key=NO_KEY, receive_key=NO_KEY):
        self.sock = sock
        self.sent = Tags(send_key)
        self.received = Tags(receive_key)
        self._ready = b""

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def sendall(self, data):
        if data[:4] == _MAGIC and data[5] < CHUNK:
            self.received.expect(data[5])
        self.sock.sendall(self.sent.seal(data))

    def recv(self, size, flags=0):
        """Return bytes of whole frames, without tags; all requested bytes with MSG_WAITALL."""
        while len(self._ready) < (size if flags & socket.MSG_WAITALL else 1):
            frame = self._frame()
            if not frame:
                break
            self._ready += frame
        got, self._ready = self._ready[:size], self._ready[size:]
        return got

    def _frame(self):
        head = self.sock.recv(HEADER_BYTES + TAG_BYTES, socket.MSG_WAITALL)
        if not head:
            return b""
        assert len(head) == HEADER_BYTES + TAG_BYTES, head
        header, tag = head[:HEADER_BYTES], head[HEADER_BYTES:]
        size = int.from_bytes(header[8:12], "little")
        body = self.sock.recv(size, socket.MSG_WAITALL) if size else b""
        covered = header if header[5] == CHUNK else header + body
        assert self.received.next(covered) == tag, "the tag is wrong"
        if header[5] == CHUNK:
            self.received.pass_on(body)
        elif header[5] < CHUNK:
            self.sent.expect(header[5])
        return header + body
