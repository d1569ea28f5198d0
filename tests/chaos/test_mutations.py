"""The mutations of `make mutants` still apply to the sources."""

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


def test_names_are_unique():
    assert len(BY_NAME) == len(MUTATIONS) >= 60
