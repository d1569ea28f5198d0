"""Check GPU memory on this machine: the tests on its driver, then the figures.

    python tools/gpu_check.py                    with the packages of this interpreter
    python tools/gpu_check.py --wheels DIR       with the wheels in DIR, and no network or compiler

DIR has the wheel of llm-datadist, of what it needs and of pytest; `make gpu-check-wheels` fills
build/gpu-check/wheels. Writes the result to --out, as JSON and as a page, prints the page, and ends
within --seconds. The exit status tells whether the tests passed and all bytes were right; goals of
figures do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("tests/devices",)
FOR_TESTS = 0.5
"""Share of the time that the tests may take; the figures have the rest."""


def unpacked(wheels: Path, target: Path) -> Path:
    """Unpack every wheel of a directory; return where modules are found."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return target


def run(command: list[str], folder: Path, environment: dict[str, str], seconds: float) -> int:
    """Run a command of Python; 124 if it was ended after `seconds`."""
    try:
        return subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            timeout=max(seconds, 1),
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


def outcomes(report: Path) -> dict[str, object]:
    """Return the numbers of a JUnit report, and the reasons of what was left out."""
    if not report.exists():
        return {"problem": "the tests have written no report"}
    found: dict[str, object] = {"passed": 0, "failed": [], "skipped": {}}
    failed, reasons, passed = [], {}, 0
    for case in ET.parse(report).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            reason = skipped.get("message") or ""
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            passed += 1
    return found | {"passed": passed, "failed": failed, "skipped": reasons}


def tables(result: dict) -> str:
    """Return the result as a page."""
    tests, facts = result["tests"], result["facts"]
    lines = [
        f"# GPU check, {facts.get('date')}",
        "",
        f"{facts.get('card')}, CUDA {facts.get('cuda')}, {result['seconds']:.0f} s",
        "",
        "| tests | number |",
        "|---|---|",
        f"| passed | {tests.get('passed', 0)} |",
        f"| failed | {len(tests.get('failed', []))} |",
        *(f"| left out: {why} | {number} |" for why, number in tests.get("skipped", {}).items()),
        "",
        "| case | figure | goal |",
        "|---|---|---|",
        *result["rows"],
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--seconds", type=float, default=340)
    parser.add_argument("--quick", action="store_true", help="few bytes: shows that it works")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="arguments of pytest")
    options = parser.parse_args()
    begin = time.monotonic()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "tests")]
    if options.wheels is not None:
        paths.insert(0, str(unpacked(options.wheels, out / "site")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    junit, figures = out / "tests.xml", out / "figures.json"
    for old in (junit, figures):
        old.unlink(missing_ok=True)
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={junit}"]
    tested = run(
        ["-m", "pytest", *plain, *options.tests], ROOT, environment, FOR_TESTS * options.seconds
    )
    left = options.seconds - (time.monotonic() - begin)
    quick = ["--quick"] if options.quick else []
    command = ["-m", "gpu", "--json", str(figures), "--seconds", str(left * 0.6), *quick]
    measured = run(command, ROOT / "benchmarks", environment, left)
    found = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    result = {
        "facts": found.get("facts", {}),
        "seconds": time.monotonic() - begin,
        "tests": outcomes(junit) | {"status": tested},
        "figures": found.get("figures", []),
        "wrong_bytes": found.get("wrong_bytes", []),
        "rows": [row(each) for each in found.get("figures", [])],
    }
    page = tables(result)
    del result["rows"]
    (out / "gpu-check.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "gpu-check.md").write_text(page, encoding="utf-8")
    print(page)
    return 0 if tested == 0 and measured == 0 else 1


def row(figure: dict) -> str:
    """Return a line of the table for one figure."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu.report import row as line  # noqa: PLC0415 - a module of the tree, not of a package

    return line(figure)


if __name__ == "__main__":
    sys.exit(main())
