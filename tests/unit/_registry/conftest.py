"""A peer whose directory is read."""

import pytest

from support.directories import Peer


@pytest.fixture
def peer():
    return Peer()
