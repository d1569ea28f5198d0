from __future__ import annotations

import numpy as np
import pytest

from llm_datadist._plan import Layout, Piece


def test_describes_tensors():
    layout = Layout.of([1000, 2000], 600, 6)
    assert layout.addrs.dtype == np.uint64
    assert layout.starts == (1000, 2000)
    assert (layout.unit_bytes, layout.num_units, layout.num_tensors) == (100, 6, 2)
    assert layout.all_tensors == range(2)
    assert layout.divided(3).unit_bytes == 200


def test_takes_addresses_of_all_64_bits():
    assert Layout.of([2**64 - 9], 8, 1).starts == (2**64 - 9,)
    with pytest.raises(ValueError, match="wrap"):
        Layout.of([5, 2**64 - 8], 8, 1)


def test_raw_addresses_are_tensors_of_the_given_units():
    layout = Layout.raw([4096], 16, 4)
    assert (layout.tensor_bytes, layout.unit_bytes, layout.num_units) == (64, 16, 4)
    with pytest.raises(ValueError, match="wrap"):
        Layout.raw([2**64 - 32], 16, 4)


def test_locates_bytes_in_every_unit_and_tensor():
    layout = Layout.of([1000, 1600], 600, 6)
    assert list(layout.locate(1150, 100)) == [Piece(0, 1, 1150, 50), Piece(0, 2, 1200, 50)]
    assert list(layout.locate(1590, 20)) == [Piece(0, 5, 1590, 10), Piece(1, 0, 1600, 10)]
    assert list(layout.locate(0, 1000)) == []
    assert list(layout.locate(2200, 10)) == []
