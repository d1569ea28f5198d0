"""What a process did, as JSON lines that the driver reads while the process writes them."""

import json
import threading
import time
from collections import Counter, deque

_REMEMBERED = 400


class Journal:
    """Counts of all calls; violations with the calls before them; every call when traced.

    Thread-safe. A process that is killed leaves whole lines, and perhaps a part of one.
    """

    def __init__(self, path, slot, life, *, trace=False):
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._where = {"slot": slot, "life": life}
        self._trace = trace
        self._recent = deque(maxlen=_REMEMBERED)
        self._counts = Counter()
        self._worst_ms = {}
        self.violations = 0

    def call(self, actor, operation, status, seconds, late_s, details):
        """Note a call, how it ended, and how long after its bound that was."""
        line = {
            "at": round(time.monotonic(), 4),
            "actor": actor,
            "call": operation,
            "status": status,
            "ms": round(seconds * 1000, 2),
            **details,
        }
        with self._lock:
            self._counts[f"{operation} {status}"] += 1
            late_ms = round(late_s * 1000, 1)
            self._worst_ms[operation] = max(late_ms, self._worst_ms.get(operation, -1e9))
            self._recent.append(line)
            if self._trace:
                self._write(line)

    def count(self, what, number=1):
        with self._lock:
            self._counts[what] += number

    def violation(self, kind, **details):
        """Note that something happened that must not."""
        with self._lock:
            self.violations += 1
            recent = list(self._recent)[-40:] if self.violations <= 5 else []
            at = round(time.monotonic(), 4)
            self._write({"at": at, "violation": kind, **details, "before": recent})

    def beat(self, **holdings):
        """Write the counts since the last beat, and what the process holds."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            worst, self._worst_ms = self._worst_ms, {}
            line = {"beat": holdings, "counts": counts, "worst_ms": worst}
            self._write({"at": round(time.monotonic(), 4), **line})

    def _write(self, line):
        self._file.write(json.dumps({**line, **self._where}, default=str) + "\n")
