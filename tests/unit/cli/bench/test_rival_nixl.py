"""How NIXL is driven: each case in the way that is faster."""

import pytest

from llm_datadist.cli.bench.rival_nixl import Nixl
from llm_datadist.cli.bench.work import MIB, Case, buffer
from support.nixl_backends import NEEDS_NIXL


@pytest.fixture
def nixl():
    contender = Nixl(buffer(2 * MIB))
    yield contender
    contender.close()


@pytest.mark.slow
@NEEDS_NIXL
def test_a_few_pieces_are_prepared_and_a_transfer_makes_no_descriptors(nixl, monkeypatch):
    """Else NIXL pays in its timed part for what this library has done before."""
    few, many = (Case("", 2048, blocks * 2 * 2048, tensors=2) for blocks in (128, 256))
    for case in (many, few):
        nixl.check_read(case)
        nixl.check_write(case)
    made = []
    monkeypatch.setattr(nixl, "_descriptors", lambda *_: made.append(1))
    nixl.read(few)
    nixl.write(few)
    assert made == []
