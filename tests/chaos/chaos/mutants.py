"""Builds the product with one guarantee taken away, and expects its tests to fail.

python -m chaos.mutants                    # all; `make mutants ARGS="NAME ..."` does it
python -m chaos.mutants served-entry       # one
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from chaos.mutations import BY_NAME, MUTATIONS, Mutation

ROOT = Path(__file__).parents[3]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
SITE = WORK / "site"
CHAOS = {"seconds": 60.0, "seed": 1, "stop_early": True}
CONTROL = Mutation("none", "nothing", (), chaos={"seconds": 30.0})
_LONGEST_S = 400


def mutated(mutation, read):
    """The files of a mutation with its edits: path -> text.

    Raises:
        ValueError: An edit does not apply: its text is not there, or more than once.
    """
    texts = {}
    for edit in mutation.edits:
        text = texts.get(edit.path) or read(edit.path)
        if text.count(edit.old) != 1:
            raise ValueError(
                f"mutation {mutation.name}: {edit.old!r} occurs {text.count(edit.old)} times in "
                f"{edit.path}; bring tests/chaos/chaos/mutations.py up to date"
            )
        texts[edit.path] = text.replace(edit.old, edit.new)
    return texts


def read_source(path):
    return (ROOT / path).read_text()


class Bench:
    """A copy of the tree, built beside the original, in an environment of its own."""

    def __init__(self):
        listing = _output("git", "ls-files", "--cached", "--others", "--exclude-standard")
        names = set(listing.splitlines())
        for left in TREE.rglob("*"):
            if left.is_file() and left.relative_to(TREE).as_posix() not in names:
                left.unlink()
        # What differs gets the time of now, above all what an earlier run has mutated: an object
        # that was built of that must not look newer than the source.
        for name in names:
            source, target = ROOT / name, TREE / name
            if source.is_file() and not _same(source, target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        venv = WORK / "venv"
        self.python = venv / "bin" / "python"
        if not self.python.exists():
            _run(sys.executable, "-m", "venv", "--without-pip", venv)
        path = "import sysconfig; print(sysconfig.get_path('purelib'))"
        # Lines of a .pth file that are paths reach the packages, but not the editable install.
        own_site = Path(_output(self.python, "-c", path).strip())
        borrowed = _output(sys.executable, "-c", path).strip()
        (own_site / "borrowed.pth").write_text(f"{SITE}\n{borrowed}\n")

    def install(self, texts):
        """Build the tree with these files instead of its own."""
        for path, text in texts.items():
            (TREE / path).write_text(text)
        build = [f"-Cbuild-dir={WORK / 'cmake'}", "--no-deps", "--no-build-isolation"]
        install = [sys.executable, "-m", "pip", "install", "-qq", "--upgrade", "--target", SITE]
        _run(*install, *build, TREE)

    def restore(self, texts):
        for path in texts:
            (TREE / path).write_text(read_source(path))

    def fails(self, mutation):
        """Run what has to notice; (whether it did, its last lines)."""
        if mutation.chaos is None:
            command = [self.python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
            found = _tried([*command, *mutation.tests], TREE)
        else:
            options = {**CHAOS, **mutation.chaos}
            words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
            words = [word.removesuffix("=True") for word in words]
            found = _tried([self.python, "-m", "chaos", *words], TREE / "tests" / "chaos")
        # 1: tests failed, or a run found violations. Anything else is no finding.
        return found.returncode == 1, _lines(found.stdout)


def _same(source, target):
    return target.is_file() and target.read_bytes() == source.read_bytes()


def _lines(text):
    """The first line that tells what was found, without the circumstances."""
    told = [line for line in text.splitlines() if line.startswith(("VIOLATION", "E  ", "FAILED"))]
    line = re.sub(r"'(at|was|became)': (\[.*?\]\S*(?=, ')|[^,]*), ", "", told[0] if told else text)
    return [line[:240]]


def _tried(command, cwd):
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=_LONGEST_S, check=False
    )


def _run(*command):
    subprocess.run([str(word) for word in command], check=True)


def _output(*command):
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main(names):
    """Try mutations; the exit status is 1 when one was not noticed."""
    bench = Bench()
    missed = []
    bench.install({})
    noticed, lines = bench.fails(CONTROL)
    if noticed:
        print(f"the product as it is fails already: {lines}")
        return 1
    for mutation in [BY_NAME[name] for name in names] or MUTATIONS:
        texts = mutated(mutation, read_source)
        began = time.monotonic()
        bench.install(texts)
        built = time.monotonic()
        noticed, lines = bench.fails(mutation)
        took = f"built in {built - began:.0f} s, run for {time.monotonic() - built:.0f} s"
        by = "chaos" if mutation.chaos is not None else " ".join(mutation.tests)
        print(f"{'noticed' if noticed else 'MISSED':8} {mutation.name} by {by}; {took}", flush=True)
        for line in lines:
            print(f"         {line}", flush=True)
        bench.restore(texts)
        if not noticed:
            missed.append(mutation.name)
    print(f"{len(missed)} missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
