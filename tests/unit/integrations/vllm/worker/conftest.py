"""Sides of one role each; see support/vllm/fake_worker.py."""

import pytest


@pytest.fixture
def make(request):
    """Make the `Side` of the test's module; it ends with the test."""
    made = []

    def make(*arguments, **options):
        made.append(request.module.Side(*arguments, **options))
        return made[-1]

    yield make
    for side in made:
        side.close()
