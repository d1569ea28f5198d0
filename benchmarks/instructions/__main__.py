"""Counts instructions and compares them with baseline.json: `make instructions`.

Counts do not depend on what else the machine does: they repeat to 0.2%. They do depend on versions
and builds of the interpreter, numpy and the C library; so each case counts relative to a reference
loop of the same run, which leaves 5% between two builds of Python 3.11, there is a margin, and each
version of Python and numpy has a baseline of its own. Without one, or without valgrind, nothing is
compared, which is not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

_VERSIONS = platform.python_version(), metadata.version("numpy")
VERSIONS = "Python {}, numpy {}".format(*(".".join(v.split(".")[:2]) for v in _VERSIONS))
HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
MARGIN = 0.07
REFERENCE = "reference"
LONGEST_S = 300
CALLGRIND = ("--tool=callgrind", "--instr-atstart=no")


def main() -> int:
    """Return 1 when a case takes more instructions than the baseline and its margin allow."""
    parser = argparse.ArgumentParser(prog="python -m instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="make these counts the baseline")
    update = parser.parse_args().update
    if not works():
        return 0
    counts = measure()
    ratios = {name: round(each / counts[REFERENCE], 5) for name, each in counts.items()}
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if update:
        BASELINE.write_text(json.dumps(known | {VERSIONS: ratios}, indent=2) + "\n")
    if VERSIONS not in known and not update:
        print(f"LEFT OUT: there is no baseline for {VERSIONS}; --update makes one")
    return compare(counts, ratios, ratios if update else known.get(VERSIONS, {}))


def works() -> bool:
    """Return whether callgrind can run this interpreter: it knows few instructions of new CPUs."""
    for tool in ("valgrind", "callgrind_control"):
        if shutil.which(tool) is None:
            print(f"LEFT OUT: {tool} is not installed, so instructions cannot be counted")
            return False
    trial = ["valgrind", *CALLGRIND, "--callgrind-out-file=/dev/null", sys.executable, "-c", ""]
    ran = subprocess.run(trial, check=False, capture_output=True, text=True, timeout=LONGEST_S)
    if ran.returncode != 0:
        print(f"LEFT OUT: valgrind cannot run {sys.executable}:\n{ran.stderr[-1000:]}")
    return ran.returncode == 0


def measure() -> dict[str, float]:
    """Return the instructions of one call of each case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            "valgrind",
            *CALLGRIND,
            "--separate-threads=yes",
            "--zero-before=getsid",
            "--dump-before=getppid",
            f"--callgrind-out-file={out}",
            sys.executable,
            str(HERE / "workload.py"),
        ]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            env=environment,
        )
        if ran.returncode != 0:
            sys.exit(f"the workload failed with {ran.returncode}:\n{ran.stderr[-4000:]}")
        cases = json.loads(ran.stdout.splitlines()[-1])
        return {
            name: total(out.with_name(f"out.{number}-01")) / times
            for number, (name, times) in enumerate(cases, 1)
        }


def total(file: Path) -> int:
    """Return the instructions of a file of callgrind, which is of the first thread."""
    totals = [line for line in file.read_text().splitlines() if line.startswith("totals:")]
    return int(totals[0].split()[1])


def compare(counts: dict[str, float], ratios: dict[str, float], baseline: dict[str, float]) -> int:
    """Print a table; return 1 when something is above its limit."""
    worse = []
    for name, each in counts.items():
        change = ratios[name] / baseline[name] - 1 if name in baseline else 0.0
        print(f"{name:40} {each:14,.0f} instructions, {change:+7.1%} against the baseline")
        if change > MARGIN:
            worse.append(name)
    if worse:
        print(f"more than {MARGIN:.0%} above the baseline: {', '.join(worse)}")
        print("make them cheaper, or give the reason and run `python -m instructions --update`")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
