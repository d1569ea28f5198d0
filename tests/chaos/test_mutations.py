"""The mutations of `make mutants` still apply to the sources."""

import re
import subprocess
import sys

import pytest
from chaos.mutants import ROOT, read_source
from chaos.mutation import mutated
from chaos.mutations import BY_NAME, MUTATIONS


@pytest.mark.parametrize("name", BY_NAME)
def test_it_applies_and_its_judge_exists(name):
    mutation = BY_NAME[name]
    texts = mutated(mutation, read_source)
    assert all(text != read_source(path) for path, text in texts.items())
    for path, text in texts.items():
        if path.endswith(".py"):
            compile(text, path, "exec")
    judges = [bool(mutation.tests), bool(mutation.program), mutation.chaos is not None]
    assert sum(judges) == 1
    if mutation.program:
        assert any(ROOT.glob(f"tests/native/**/{mutation.program}.cc"))
    paths = [word for word in mutation.test_arguments if word.startswith("tests/")]
    assert all((ROOT / path.split("::")[0]).exists() for path in paths)


def test_names_of_tests_are_those_of_tests():
    """A test that has moved, or has another name now, would count as one that notices nothing."""
    chosen = [mutation for mutation in MUTATIONS if "-k" in mutation.test_arguments]
    paths = {word for each in chosen for word in each.test_arguments if word.startswith("tests/")}
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:xdist"]
    ran = subprocess.run(
        [*command, *sorted(paths)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    tests = ran.stdout.splitlines()
    assert [each.name for each in chosen if not _selects(each.test_arguments, tests)] == []


def _selects(arguments, tests):
    paths = tuple(word for word in arguments if word.startswith("tests/"))
    words = arguments[arguments.index("-k") + 1]
    rule = re.sub(r"\b(?!(?:and|or|not)\b)[\w-]+", lambda word: f"({word[0]!r} in name)", words)
    return any(eval(rule, {"name": name}) for name in tests if name.startswith(paths))


def test_names_are_unique():
    assert len(BY_NAME) == len(MUTATIONS) >= 60
