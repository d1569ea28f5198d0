"""Write inputs for the fuzz targets to start from: `python seeds.py DIRECTORY`."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

MAGIC = 0x4E4C444C
READ, WRITE, PUSH, CONSUME, VERSION, READ_LOG, PING, CHECKSUM, PROBE, GATHER = range(1, 11)
CHUNK, OUTCOME, GO = 16, 17, 18
INLINE = 2
LATER_NS = 1 << 60
BASE, PAGE = 0x20000000, 4096  # arena.h
ANY = (0xFFFFFFFF, 0)
ACCESSIBLE, PRIVATE, FAULTY = (1, 1), (2, 1), (3, 1)  # as fuzz_served_lane.cc opens them
KEY = (4, 1)
AT = {ACCESSIBLE: BASE + 1024, PRIVATE: BASE + PAGE, FAULTY: BASE + 3 * PAGE - 512}


def header(kind: int, body: int = 0, flags: int = 0, sequence: int = 1) -> bytes:
    return struct.pack("<IBBHII", MAGIC, 2, kind, flags, body, sequence)


def request(
    kind: int,
    descriptors: list[tuple[int, ...]] = [],  # noqa: B006 - never changed
    *,
    entry: tuple[int, int] = (0, 0),
    key: tuple[int, int] = (0, 0),
    flags: int = 0,
    log: tuple[int, int] = (0, 0),
) -> bytes:
    words = [word for column in zip(*descriptors, strict=True) for word in column]
    body = struct.pack("<9QII", LATER_NS, LATER_NS, 0, *entry, *key, *log, len(descriptors), 0)
    body += struct.pack(f"<{len(words)}Q", *words)
    return header(kind, len(body), flags) + body


def chunk(data: bytes) -> bytes:
    return header(CHUNK, len(data)) + data


def outcome(code: int = 0, index: int = -1, moved: int = 0) -> bytes:
    return header(OUTCOME, 32) + struct.pack("<IiqQQ", code, 0, index, moved, 0)


def conversations() -> dict[str, bytes]:
    """What an initiator may say."""
    found = {
        "ping": request(PING),
        "version": request(VERSION),
        "log": request(READ_LOG, log=(0, 4096)),
        "consume": request(CONSUME, key=KEY),
        "several": request(PING) + request(VERSION) + request(CONSUME, key=KEY) * 2,
    }
    for name, entry in (("open", ACCESSIBLE), ("private", PRIVATE), ("faulty", FAULTY)):
        for how, ref in (("named", entry), ("any", ANY)):
            ranges = [(AT[entry], 64), (AT[entry] + 256, 700)]
            data = bytes(range(256)) * 2 + bytes(252)
            found[f"read {name} {how}"] = request(READ, ranges, entry=ref)
            found[f"write {name} {how}"] = (
                request(WRITE, ranges, entry=ref) + chunk(data) + outcome() + request(PING)
            )
            found[f"inline {name} {how}"] = (
                request(WRITE, ranges, entry=ref, flags=INLINE)
                + chunk(data[:100])
                + chunk(data[100:])
                + outcome()
            )
            found[f"checksum {name} {how}"] = request(CHECKSUM, ranges, entry=ref)
            found[f"probe {name} {how}"] = request(PROBE, ranges, entry=ref)
            found[f"gather {name} {how}"] = request(GATHER, ranges, entry=ref) * 2 + request(PING)
            found[f"push {name} {how}"] = request(
                PUSH,
                [(*each, AT[ACCESSIBLE]) for each in ranges],
                entry=ref,
                key=ACCESSIBLE,
                flags=1,
            )
    found["read with key"] = request(READ, [(AT[ACCESSIBLE], 9)], entry=ACCESSIBLE, key=KEY)
    found["given up"] = (
        request(WRITE, [(AT[ACCESSIBLE], 64)], entry=ACCESSIBLE) + chunk(bytes(9)) + outcome(12)
    )
    return found


def answers() -> dict[str, bytes]:
    """What a target may say: choice of the request, pieces, frames."""
    data = bytes(range(256)) * 6
    done = outcome(moved=len(data))
    return {
        "read": b"\0\0" + chunk(data) + done,
        "read in parts": b"\0\7" + chunk(data[:100]) + chunk(data[100:]) + done,
        "read refused": b"\0\0" + outcome(1),
        "read failed late": b"\0\0" + chunk(data[:700]) + outcome(5, 1, 700),
        "read of a bad page": b"\1\0" + chunk(data) + chunk(bytes(1024)) + outcome(moved=2560),
        "write": b"\2\0" + done,
        "write refused": b"\2\0" + outcome(7, 1),
        "write go": b"\3\0" + header(GO) + done,
        "push": b"\4\0" + outcome(moved=128),
        "version": b"\5\0" + outcome(),
        "log": b"\6\0" + chunk(data[:1024]) + outcome(moved=1024),
        "short log": b"\6\0" + chunk(data[:100]) + outcome(moved=100),
        "consume": b"\7\0" + outcome(1),
        "checksum": b"\xff\0" + chunk(data[:1024]) + outcome(),
        "gather": b"\xef\0" + chunk(data[:1024]) + outcome(),
        "gather too much": b"\xef\0" + chunk(data[:1025]) + outcome(),
        "probe": b"\xf0\0" + outcome(),
        "probe of a bad page": b"\xf0\0" + outcome(5),
        "no tags": b"\0\xff" + chunk(data) + done,
    }


def main(directory: Path) -> None:
    said, answered = conversations(), answers()
    targets = {
        "frames": {**said, **{name: data[2:] for name, data in answered.items()}},
        "served_lane": {
            f"{name} {choice}": bytes([choice]) + data
            for name, data in said.items()
            for choice in ((1, 3) if name.startswith("push") else (0, 8, 0x80))
        },
        "exchange": answered,
    }
    for target, inputs in targets.items():
        (directory / target).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (directory / target / name.replace(" ", "_")).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
