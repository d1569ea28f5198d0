"""Forged data of a linked peer: guards, ranges, directories, ..."""

from __future__ import annotations

import struct

from llm_datadist._registry.records import Added, encode_frame
from support.hostile.frames import (
    ANY_ENTRY,
    CHECKSUM,
    CONSUME,
    GATHER,
    GONE,
    OK,
    PING,
    PROBE,
    PUSH,
    READ,
    READ_LOG,
    SYSTEM,
    VERSION,
    WRITE,
)
from support.hostile.victims import BLOCK_BYTES, BLOCKS, WORDS

U64 = 2**64
TOUCHING = (READ, WRITE, PUSH, CHECKSUM, PROBE, GATHER)


def guards_of(facts, *others):
    """Guards that are not a key's: of every other kind, dead ones, and nonexistent ones."""
    known = [facts["entry"], facts["link_ref"], (0, 1), *others]
    shifted = [(index, value + by) for index, value in known for by in (-1, 1, 2)]
    return [
        *map(tuple, known),
        *shifted,
        ANY_ENTRY,
        (1 << 20, 1),
        (U64 - 1, 1),
        (1 << 61, U64 - 1),
        *((index, 1) for index in range(24)),
    ]


def ranges_outside(facts, closed):
    """Ranges (address, length) that are not wholly inside what the peer may touch."""
    begin, end = facts["address"], facts["address"] + facts["bytes"]
    return [
        *((address, 4096) for address in closed),
        (begin - 8, 16),
        (begin - 4096, 4096),
        (end - 8, 16),
        (end, 8),
        (begin, facts["bytes"] + 1),
        (begin, U64 - 1),
        (begin, U64 - begin),
        (begin, U64 - begin + 8),
        (0, 8),
        (8, U64 - 1),
        (U64 - 8, 16),
        (U64 - 1, 1),
        (1 << 63, 1 << 63),
    ]


def requests_outside(facts, closed):
    """Requests, as arguments of `ask`, each with one range outside, after one inside."""
    inside = facts["address"]
    for kind in TOUCHING:
        for address, length in ranges_outside(facts, closed):
            payload = {}
            if kind == WRITE:
                size = min(length, 4096) + 8
                payload = {"payload": b"\xee" * size}
            tail = (0,) if kind == PUSH else ()
            for cache in (ANY_ENTRY, facts["entry"]):
                pair = [(inside, 8, *tail), (address, length, *tail)]
                yield (kind, pair), {"cache": tuple(cache), **payload}


def sound_requests(facts):
    """What `malformed_requests` and `requests_outside` spoil: arguments of `ask`, and the code."""
    good = [(facts["address"], 8)]
    for kind in (READ, CHECKSUM, PROBE):
        yield (kind, good), {}, OK
    for kind in (VERSION, PING):
        yield (kind,), {}, OK
    yield (READ_LOG,), {"log": (0, 8)}, OK
    yield (CONSUME,), {"key": (1 << 20, 1)}, GONE
    yield (WRITE, good), {"payload": bytes(8)}, OK
    # Over lanes alone there is nothing to read from.
    yield (PUSH, [(*good[0], 0)]), {}, SYSTEM
    yield (GATHER, good), {}, SYSTEM


def malformed_requests(facts):
    """Requests that no correct peer sends; each ends its lane."""
    good = [(facts["address"], 8)]
    for kind in (READ, CHECKSUM, PROBE, GATHER):
        yield (kind, good), {"count": 2}
        yield (kind, good), {"count": 0}
        yield (kind, good), {"count": 1 << 31}
        yield (kind, good), {"reserved": 1}
        yield (kind, good), {"flags": 0x8000}
        yield (kind, good), {"left": 1 << 63}
        yield (kind, good), {"columns": [1]}
    for kind in (CONSUME, VERSION, PING):
        yield (kind, good), {}
    yield (PUSH, good), {}
    yield (READ_LOG,), {"log": (0, U64 - 1)}
    yield (READ_LOG,), {"log": (U64 - 1, 1 << 31)}
    yield (0,), {}
    yield (15,), {}
    yield (250,), {}
    yield (PING,), {"magic": 1}
    yield (WRITE, [(facts["address"], 1 << 40)]), {}


def odd_directories(address, entry, key=66):
    """Directories (version, bytes) that lie: about shapes, addresses, types, and themselves."""
    blocks = (BLOCKS, WORDS)
    honest = {
        "cache_id": 1,
        "entry": tuple(entry),
        "is_blocks": True,
        "num_tensors": 4,
        "shape": blocks,
        "data_type": 10,
        "placement": 1,
        "batch_dim_index": 0,
        "addrs": struct.pack("<Q", address) * 4,
        "accessible": True,
        "blocks_key": key,
    }
    changes = [
        {"shape": (BLOCKS, 1 << 60)},
        {"shape": (1 << 63, 1 << 63)},
        {"shape": ()},
        {"shape": (0, 0)},
        {"shape": (BLOCKS, WORDS, 0)},
        {"num_tensors": 0, "addrs": b""},
        {"num_tensors": (1 << 32) - 1},
        {"num_tensors": 4, "addrs": b""},
        {"addrs": b"\xff" * 32},
        {"addrs": b"\xff" * 31},
        {"addrs": struct.pack("<Q", U64 - BLOCK_BYTES) * 4},
        {"data_type": -1},
        {"data_type": 1000},
        {"placement": -5},
        {"batch_dim_index": -(1 << 31)},
        {"batch_dim_index": 7},
        {"entry": (U64 - 1, U64 - 1)},
        {"on_device": True},
        {"accessible": False},
        {"is_blocks": False},
    ]
    for change in changes:
        log = encode_frame(Added(**(honest | change)))
        yield (2 << 40) | len(log), log
    log = encode_frame(Added(**honest))
    yield (3 << 40) | len(log), log
    yield (2 << 40) | (len(log) + 5), log + bytes(5)
    yield (2 << 40) | (1 << 39), log
    yield (2 << 40) | 4, b"\xff\xff\xff\x7f"
