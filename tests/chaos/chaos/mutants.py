"""Tries mutations: the tests that each names, or chaos, must fail with it.

python -m chaos.mutants                    # all; `make mutants ARGS="NAME ..."` does it
python -m chaos.mutants served-entry       # one
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from chaos.mutation import mutated
from chaos.mutations import BY_NAME, MUTATIONS

ROOT = Path(__file__).parents[3]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
SITE = WORK / "site"
NATIVE = WORK / "cmake"
PROGRAMS = WORK / "programs"
PYTHON = WORK / "venv" / "bin" / "python"
CHAOS = {"seconds": 60.0, "seed": 1, "stop_early": True}
_LONGEST_S = 400
_LONGEST_CONTROL_S = 1800


@functools.cache
def read_source(path):
    """Return the text of a source, as it is."""
    return (ROOT / path).read_text()


class Bench:
    """A copy of the tree, built and installed beside the original, with a Python of its own."""

    def __init__(self):
        self._copy_tree()
        self._borrow_packages()
        build = [f"-Cbuild-dir={NATIVE}", "--no-deps", "--no-build-isolation"]
        install = [sys.executable, "-m", "pip", "install", "-qq", "--upgrade", "--target", SITE]
        _run(*install, *build, TREE)

    @staticmethod
    def _copy_tree():
        """Copy the tree: what differs gets the time of now.

        So an object that an earlier run has built of a mutated source is never newer than it.
        """
        listing = _output("git", "ls-files", "--cached", "--others", "--exclude-standard")
        names = set(listing.splitlines())
        for left in TREE.rglob("*"):
            if left.is_file() and left.relative_to(TREE).as_posix() not in names:
                left.unlink()
        for name in names:
            source, target = ROOT / name, TREE / name
            same = target.is_file() and source.is_file()
            if source.is_file() and not (same and target.read_bytes() == source.read_bytes()):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    @staticmethod
    def _borrow_packages():
        """Make an environment that has the packages of this one, but not its editable install."""
        if not PYTHON.exists():
            _run(sys.executable, "-m", "venv", "--without-pip", PYTHON.parents[1])
        path = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own_site = Path(_output(PYTHON, "-c", path).strip())
        borrowed = _output(sys.executable, "-c", path).strip()
        (own_site / "borrowed.pth").write_text(f"{SITE}\n{borrowed}\n")

    @staticmethod
    def install(texts):
        """Put these texts in the place of the files, and build the native core if it changes."""
        for path, text in texts.items():
            (TREE / path).write_text(text)
            if path.startswith("src/"):
                (SITE / path.removeprefix("src/")).write_text(text)
        if any(path.startswith("native/") for path in texts):
            _run(_cmake(), "--build", NATIVE, quiet=True)
            _run(_cmake(), "--install", NATIVE, "--prefix", SITE, quiet=True)

    @staticmethod
    def fails(mutation):
        """Run what has to notice; return whether it did, and what it found."""
        if mutation.program:
            return Bench.program_fails(mutation.program)
        if mutation.chaos is None:
            return _fails(*_PYTEST, *mutation.test_arguments)
        options = {**CHAOS, **mutation.chaos}
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        words = [word.removesuffix("=True") for word in words]
        return _fails(PYTHON, "-m", "chaos", *words, cwd=TREE / "tests" / "chaos")

    @staticmethod
    def program_fails(name):
        """Build and run a native test program; return whether it fails, and what it says."""
        options = ("-G", "Ninja", "-DLDD_TESTS=ON", "-DCMAKE_BUILD_TYPE=Debug")
        _run(_cmake(), "-S", TREE, "-B", PROGRAMS, *options, quiet=True)
        _run(_cmake(), "--build", PROGRAMS, "--target", name, quiet=True)
        return _fails(PROGRAMS / "tests" / "native" / name, status=-signal.SIGABRT)

    @staticmethod
    def control(mutations):
        """Run the same without any mutation: all tests together, chaos for a moment."""
        for program in {mutation.program for mutation in mutations} - {""}:
            failed, found = Bench.program_fails(program)
            if failed:
                return failed, found
        names = {word for each in mutations for word in each.test_arguments if "tests/" in word}
        failed, found = False, ""
        if names:
            failed, found = _fails(*_PYTEST, *sorted(names), limit_s=_LONGEST_CONTROL_S)
        if not failed and any(mutation.chaos is not None for mutation in mutations):
            chaos = (PYTHON, "-m", "chaos", "--seconds=15", "--seed=1")
            failed, found = _fails(*chaos, cwd=TREE / "tests" / "chaos")
        return failed, found


_PYTEST = (PYTHON, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")


def _fails(*command, cwd=TREE, limit_s=_LONGEST_S, status=1):
    """Whether a command ended with the status of a finding, and what it found first."""
    # Without bytecode: two mutations of one file may be of one size and second.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"it has not ended after {limit_s} s"
    return ended.returncode == status, _finding(ended.stdout + ended.stderr)


def _finding(text):
    """Return the first line that says what was found, without the circumstances."""
    marks = ("VIOLATION", "E  ", "FAILED", "ERROR")
    told = [line for line in text.splitlines() if line.startswith(marks)]
    line = re.sub(r"'(at|was|became)': (\[.*?\]\S*(?=, ')|[^,]*), ", "", told[0] if told else text)
    return line.strip()[:240]


def _cmake():
    return shutil.which("cmake", path=Path(sys.executable).parent) or "cmake"


def _run(*command, quiet=False):
    where = subprocess.DEVNULL if quiet else None
    subprocess.run([str(word) for word in command], check=True, stdout=where)


def _output(*command):
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _try(bench, mutation):
    """Return whether a mutation is noticed."""
    began = time.monotonic()
    texts = mutated(mutation, read_source)
    bench.install(texts)
    installed = time.monotonic()
    try:
        noticed, found = bench.fails(mutation)
    finally:
        # The next native mutation builds this file again; Python files are put back at once.
        bench.install({path: read_source(path) for path in texts if path.startswith("src/")})
        for path in texts:
            (TREE / path).write_text(read_source(path))
    took = f"{installed - began:.0f} s to build, {time.monotonic() - installed:.0f} s to judge"
    state = "noticed" if noticed else "MISSED"
    print(f"{state:8}{mutation.name} by {mutation.judge}; {took}", flush=True)
    print(f"        {found}", flush=True)
    return noticed


def main(names):
    """Try mutations; the exit status is 1 if one was not noticed."""
    began = time.monotonic()
    mutations = [BY_NAME[name] for name in names] or sorted(MUTATIONS, key=lambda m: m.is_native)
    bench = Bench()
    failed, found = bench.control(mutations)
    if failed:
        print(f"the product as it is fails already: {found}")
        return 1
    missed = [mutation.name for mutation in mutations if not _try(bench, mutation)]
    if missed:
        print(f"missed: {', '.join(missed)}")
    minutes = (time.monotonic() - began) / 60
    print(f"{len(mutations) - len(missed)} of {len(mutations)} noticed, in {minutes:.0f} minutes")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
