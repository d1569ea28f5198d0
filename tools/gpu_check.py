"""Check GPU memory on this machine: the tests on its driver, then the figures.

    python tools/gpu_check.py                    with the packages of this interpreter
    python tools/gpu_check.py --wheels DIR       with the wheels in DIR, and no network or compiler

DIR has the wheel of llm-datadist, of what it needs and of pytest; `make gpu-check-wheels` fills
build/gpu-check/wheels, for the version of Python that GPU_PYTHON has. Writes the result to --out
($OUT, or build/gpu-check), as JSON and as a page, prints the page and a summary, and ends within
--seconds. What has not ended by then is interrupted, and the result has the rest. The exit status
tells whether the tests passed and all bytes were right; goals of figures do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("tests/devices",)
FOR_TESTS = 0.6
"""Share of the time that the tests may take; the figures have the rest."""
TO_END_S = 15.0
"""What an interrupted program may take to write its report."""


def is_for_this_python(wheel: str) -> bool:
    """Whether this interpreter can import a wheel of that name."""
    python, abi, _platform = wheel.removesuffix(".whl").split("-")[-3:]
    minor = sys.version_info.minor
    if abi == "abi3":
        return int(python.removeprefix("cp3")) <= minor
    return f"cp3{minor}" in python.split(".") or "py3" in python.split(".")


def unpacked(wheels: Path, target: Path) -> Path:
    """Unpack every wheel of a directory; return where modules are found."""
    found = sorted(wheels.glob("*.whl"))
    others = [each.name for each in found if not is_for_this_python(each.name)]
    if others or not found:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        what = f"for another Python than {version}: {', '.join(others)}" if others else "missing"
        raise SystemExit(
            f"wheels in {wheels} are {what}; run make gpu-check-wheels GPU_PYTHON=python{version} "
            "on a machine with a network and a compiler, or start this with the other Python"
        )
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return target


def run(command: list[str], folder: Path, environment: dict[str, str], seconds: float) -> int:
    """Run a command of Python; 124 if it was interrupted after `seconds`."""
    with subprocess.Popen([sys.executable, *command], cwd=folder, env=environment) as process:
        try:
            return process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(TO_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return 124


def outcomes(report: Path) -> dict[str, object]:
    """Return the numbers of a JUnit report, and the reasons of what was left out."""
    if not report.exists():
        return {"problem": "the tests have written no report"}
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
    return {"passed": passed, "failed": failed, "skipped": reasons}


def tables(result: dict) -> str:
    """Return the result as a page."""
    tests, facts = result["tests"], result["facts"]
    lines = [
        f"# GPU check, {facts.get('date')}",
        "",
        f"{result['seconds']:.0f} s on " + ", ".join(f"{name} {facts[name]}" for name in facts),
        "",
        "| tests | number |",
        "|---|---|",
        f"| passed | {tests.get('passed', 0)} |",
        f"| failed | {len(tests.get('failed', []))} |",
        *(f"| failed: {name} | 1 |" for name in tests.get("failed", [])),
        *(f"| left out: {why} | {number} |" for why, number in tests.get("skipped", {}).items()),
        "",
        "| case | figure | goal |",
        "|---|---|---|",
        *result["rows"],
        "",
        "| case | path |",
        "|---|---|",
        *(f"| {case} | {path} |" for case, path in result["paths"].items()),
    ]
    return "\n".join(lines) + "\n"


def summary(result: dict, written: Path) -> str:
    """Return the outcome in a few lines."""
    tests, figures = result["tests"], result["figures"]
    goals = [each["met"] for each in figures if each.get("goal") is not None]
    missed = [each["case"] for each in figures if each.get("met") is False]
    left_out = [each["case"] for each in figures if "left_out" in each]
    skipped = sum(tests.get("skipped", {}).values())
    ended = {0: "", 124: ", interrupted as the time was over"}
    lines = [
        f"tests: {tests.get('passed', 0)} passed, {len(tests.get('failed', []))} failed, ",
        f"{skipped} left out{ended.get(tests['status'], '')}\n",
        f"figures: {sum(goals)} of {len(goals)} goals met",
        f"; missed: {'; '.join(missed)}" if missed else "",
        f"; left out: {'; '.join(left_out)}" if left_out else "",
        f"{ended.get(result['figures_status'], '')}\n",
        f"wrong bytes: {', '.join(result['wrong_bytes']) or 'none'}\n",
        f"written: {written}, {result['seconds']:.0f} s",
    ]
    return "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path)
    work = ROOT / "build" / "gpu-check"
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or work))
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--quick", action="store_true", help="few bytes: shows that it works")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="arguments of pytest")
    options = parser.parse_args()
    begin = time.monotonic()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "tests")]
    if options.wheels is not None:
        paths.insert(0, str(unpacked(options.wheels, work / "site")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    junit, figures = out / "tests.xml", out / "figures.json"
    for old in (junit, figures):
        old.unlink(missing_ok=True)
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # this machine may have any
    plain = ["-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", f"--junitxml={junit}"]
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
        "figures_status": measured,
        "paths": found.get("paths", {}),
        "wrong_bytes": found.get("wrong_bytes", []),
        "rows": [row(each) for each in found.get("figures", [])],
    }
    page = tables(result)
    del result["rows"]
    written = out / "gpu-check.json"
    written.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    written.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    print(summary(result, written))
    return 0 if tested == 0 and measured == 0 else 1


def row(figure: dict) -> str:
    """Return a line of the table for one figure."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu.report import row as line  # noqa: PLC0415 - a module of the tree, not of a package

    return line(figure)


if __name__ == "__main__":
    sys.exit(main())
