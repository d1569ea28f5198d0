"""The mutations of `make mutants` still apply to the sources."""

import pytest
from chaos.mutants import mutated, read_source
from chaos.mutations import BY_NAME, MUTATIONS


@pytest.mark.parametrize("name", BY_NAME)
def test_it_applies(name):
    mutation = BY_NAME[name]
    texts = mutated(mutation, read_source)
    assert all(text != read_source(path) for path, text in texts.items())
    for path, text in texts.items():
        if path.endswith(".py"):
            compile(text, path, "exec")


def test_names_are_unique():
    assert len(BY_NAME) == len(MUTATIONS) >= 12
    assert all((mutation.chaos is None) == bool(mutation.tests) for mutation in MUTATIONS)
