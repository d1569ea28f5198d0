"""Starts the processes, does them harm, reads their journals, and says how it went."""

import json
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from chaos.disasters import Disasters
from chaos.ledger import MOST_SLOTS, Ledger
from chaos.worker import run as run_worker
from llm_datadist.testing import Finished, PeerGroup
from support.proxy import Fault, Proxy

_TICK_S = 0.02
_PROGRESS_S = 10.0
_END_S = 60.0
_RSS_SETTLED_S = 15.0
_RSS_GROWTH_MB = 48.0


class Run:
    """One run. `peers`, `proxies` and what the disasters need are by slot.

    Args:
        options: See `chaos.__main__`; `directory` is where journals go.
        say: Called with each line of progress.
    """

    def __init__(self, options, say=print):
        self.options = options
        self.processes = options["processes"]
        assert 2 <= self.processes <= MOST_SLOTS
        self.directory = Path(options["directory"])
        self.ledger = Ledger(self.directory / "ledger")
        self.ledger.change[...] = 1  # there are no caches yet
        self.peers = {}
        self.proxies = {}
        self.violations = []
        self.counts = Counter()
        self.worst_ms = {}
        self.holdings = defaultdict(list)  # (slot, life) -> [(at, holdings)]
        self._say = say
        self._read = {}
        self._log = (self.directory / "driver.jsonl").open("a", buffering=1)
        self._group = None

    def run(self):
        """Run for the time given; return whether nothing happened that must not."""
        shared = set(Path("/dev/shm").iterdir())
        with PeerGroup(timeout_s=_END_S) as group:
            self._group = group
            try:
                self._run()
            finally:
                for proxy in self.proxies.values():
                    proxy.close()
        self._collect()
        self._check_growth()
        for path in set(Path("/dev/shm").iterdir()) - shared:
            if path.name.startswith("llm_datadist"):
                self.violation("leak", text=f"shared memory {path}")
        self._log.close()
        return not self.violations

    def _run(self):
        for slot in range(self.processes):
            self.start(slot)
        self._wait_for_all()
        disasters = Disasters(self, self.options["seed"], self.options["disaster_s"])
        try:
            self._act(disasters)
        except KeyboardInterrupt:
            self._say("stopped before its time")
        disasters.finish()
        self.counts.update({f"disaster {kind}": n for kind, n in disasters.counts.items()})
        self.ledger.stop[...] = 1
        for slot, peer in self.peers.items():
            ended = peer.wait(_END_S)
            if not isinstance(ended, Finished):
                self.violation("crash", slot=slot, text=f"at the end: {ended}")
                peer.kill()

    def _act(self, disasters):
        began = time.monotonic()
        until, shown = began + self.options["seconds"], began
        while (now := time.monotonic()) < until:
            disasters.step()
            if now - shown >= _PROGRESS_S:
                shown = now
                self._collect()
                self._say(self._progress(now - began))
            self._check_lives(disasters)
            if self.options["stop_early"] and self._collect() and self.violations:
                break
            time.sleep(_TICK_S)

    def _wait_for_all(self):
        deadline = time.monotonic() + _END_S
        while sum(self.is_ready(slot) for slot in range(self.processes)) < self.processes:
            assert time.monotonic() < deadline, "the processes do not start"
            time.sleep(0.05)

    def _check_lives(self, disasters):
        for slot, peer in list(self.peers.items()):
            if peer.exit is not None and slot not in disasters._ends:
                self.violation("crash", slot=slot, text=f"ended by itself: {peer.exit}")
                disasters._ends[slot] = disasters._kill(slot, time.monotonic(), 0.0)

    # ---- processes and proxies ----

    def start(self, slot):
        self.ledger.life[slot] += self.ledger.life.dtype.type(1)
        life = int(self.ledger.life[slot])
        options = {key: self.options[key] for key in _WORKER_OPTIONS}
        name = f"worker {slot}, life {life}"
        self.peers[slot] = self._group.start(
            run_worker, str(self.directory), slot, life, options, name=name
        )

    def is_ready(self, slot):
        """Whether the process listens; its proxy then leads to it."""
        port = int(self.ledger.port[slot])
        if not port:
            return False
        target = ("127.0.0.1", port)
        if slot in self.proxies:
            self.proxies[slot].retarget(target)
        else:
            self.proxies[slot] = Proxy(target)
            self.ledger.proxy[slot] = self.proxies[slot].address[1]
        return True

    def kill(self, slot):
        self.peers[slot].kill()
        self.peers[slot].wait()

    def spoil(self, slot, action):
        self.proxies[slot].spoil(Fault(action, None, "both"))

    def heal(self, slot):
        self.proxies[slot].heal()

    # ---- what comes out ----

    def note(self, **line):
        self._log.write(json.dumps({"at": round(time.monotonic(), 4), **line}) + "\n")

    def violation(self, kind, **details):
        self.violations.append({"violation": kind, **details})
        self.note(violation=kind, **details)
        self._say(f"VIOLATION {kind}: {details}")

    def _collect(self):
        """Read what the journals have gained; a line that is not whole waits for its rest."""
        for path in sorted(self.directory.glob("journal-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                self._take(json.loads(line))
        return True

    def _take(self, line):
        if "violation" in line:
            self.violations.append(line)
            shown = {key: value for key, value in line.items() if key != "before"}
            self._say(f"VIOLATION {shown}")
        elif "beat" in line:
            self.counts.update(line["counts"])
            for operation, late_ms in line["worst_ms"].items():
                self.worst_ms[operation] = max(late_ms, self.worst_ms.get(operation, -1e9))
            key = line["slot"], line["life"]
            self.holdings[key].append((line["at"], line["beat"]))

    def _check_growth(self):
        """Memory of a process may grow while it starts, and not for ever."""
        for (slot, life), samples in self.holdings.items():
            settled = [held for at, held in samples if at - samples[0][0] > _RSS_SETTLED_S]
            if len(settled) < 60:
                continue
            third = len(settled) // 3
            early = max(held["rss_mb"] for held in settled[:third])
            late = min(held["rss_mb"] for held in settled[-third:])
            if late - early > _RSS_GROWTH_MB:
                self.violation("leak", slot=slot, life=life, text=f"RSS {early} to {late} MiB")
            for what in ("fds", "threads"):
                early = max(held[what] for held in settled[:third])
                late = min(held[what] for held in settled[-third:])
                if late > early + 16:
                    self.violation("leak", slot=slot, life=life, text=f"{what} {early} to {late}")

    def _progress(self, seconds):
        ok = sum(n for name, n in self.counts.items() if name.endswith(" LLM_SUCCESS"))
        failed = sum(n for name, n in self.counts.items() if " LLM_" in name) - ok
        return (
            f"{seconds:7.0f} s: {ok} calls went well, {failed} failed, "
            f"{len(self.violations)} violations"
        )

    def summary(self):
        """Counts by call and status, the worst lateness, what processes held."""
        lines = [f"seed {self.options['seed']}, {self.processes} processes"]
        lines += [f"  {name}: {self.counts[name]}" for name in sorted(self.counts)]
        worst = {name: late for name, late in self.worst_ms.items() if late > 0}
        lines.append(f"ms after their bounds, at most: {worst or 'none'}")
        kept = [held for samples in self.holdings.values() for _, held in samples]
        for what in ("rss_mb", "fds", "threads"):
            found = [held[what] for held in kept] or [0]
            lines.append(f"{what}: {min(found)} to {max(found)}")
        kinds = Counter(line["violation"] for line in self.violations)
        lines.append(f"violations: {dict(kinds) or 0}")
        return "\n".join(lines)


_WORKER_OPTIONS = ("seed", "processes", "backend", "noise_s", "pace", "unlinks", "takes", "trace")

DEFAULTS = {
    "seconds": 60.0,
    "seed": 1,
    "processes": 4,
    "backend": "mix",
    "disaster_s": 1.5,
    "noise_s": 2.0,
    "pace": 1.0,
    "unlinks": 0.04,
    "takes": 2,
    "trace": False,
    "stop_early": False,
    "keep": False,
}


def carry_out(say=print, **options):
    """Make one run; return it, and whether it was good. Its files stay where they are needed."""
    unknown = set(options) - set(DEFAULTS)
    assert not unknown, unknown
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    run = Run({**DEFAULTS, **options, "directory": str(directory)}, say)
    good = run.run()
    say(run.summary())
    if good and not options.get("keep"):
        shutil.rmtree(directory)
    else:
        say(f"journals: {directory}")
    return run, good
