from __future__ import annotations

import enum

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._plan import Layout, blocks_array, checked_blocks, copy_pairs, tensor_ranges

CALL = "pull_blocks"
INVALID = LLMStatusCode.LLM_PARAM_INVALID


class Block(enum.IntEnum):
    FIRST = 0
    SECOND = 1


def array(blocks, num_blocks=10, **options):
    return blocks_array(CALL, "src_blocks", blocks, num_blocks, **options)


@pytest.mark.parametrize(
    "blocks", [[], (), [3], (3,), [1, 9, 0], [np.int32(4)], [np.uint64(4), 5], list(Block)]
)
def test_lists_and_tuples_of_integers(blocks):
    result = array(blocks)
    assert result.dtype == np.int64
    assert result.tolist() == [int(block) for block in blocks]


@pytest.mark.parametrize("blocks", [None, 3, "12", {1, 2}, iter([1]), b"1"])
def test_other_containers_are_refused(blocks):
    with pytest.raises(
        TypeError, match="src_blocks must be a list or tuple of int, a range or an array"
    ):
        array(blocks)


ARRAYS = [
    range(4),
    range(9, 0, -3),
    range(0),
    np.array([1, 9, 0]),
    np.array([3, 1], np.uint8),
    np.arange(9, dtype=np.int32)[::-2],
    np.array([], np.int64),
]


class Array:
    """An array of another library: DLPack only."""

    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("blocks", ARRAYS)
def test_ranges_and_arrays_of_integers(blocks):
    result = array(blocks, unique=True)
    assert result.dtype == np.int64
    assert result.tolist() == [int(block) for block in blocks]
    assert result is not blocks


def test_arrays_of_other_libraries():
    assert array(Array(np.array([4, 2], np.int32))).tolist() == [4, 2]


def test_a_tensor_of_torch():
    torch = pytest.importorskip("torch")
    assert array(torch.tensor([4, 2], dtype=torch.int32)).tolist() == [4, 2]
    with pytest.raises(TypeError, match="one dimension, got 1 dimensions of bool"):
        array(torch.tensor([True]))


@pytest.mark.parametrize(
    "blocks", [np.zeros(2), np.zeros(2, bool), np.zeros((2, 2), int), np.array(3), np.array(["1"])]
)
def test_other_arrays_are_refused(blocks):
    with pytest.raises(TypeError, match="src_blocks must be an array of integers with one dim"):
        array(blocks)


class Changing(np.ndarray):
    """An array that another thread changes as soon as it was looked at."""

    def max(self, *arguments, **options):
        found = super().max(*arguments, **options)
        self[0] = 99
        return found


def test_an_array_that_changes_during_the_check_is_checked_as_it_is_used():
    blocks = np.array([4, 2]).view(Changing)
    assert array(blocks).tolist() == [4, 2]


def test_an_array_that_cannot_be_read():
    class OnDevice(Array):
        def __dlpack__(self, **_):
            raise BufferError("on a GPU")

    with pytest.raises(TypeError, match=r"src_blocks cannot be read .*on a GPU.*in host memory"):
        array(OnDevice(np.zeros(1, int)))


@pytest.mark.parametrize("kind", [np.array, lambda blocks: range(blocks[0], blocks[-1] + 1)])
def test_arrays_are_checked_as_lists_are(kind):
    with pytest.raises(ValueError, match=r"src_blocks\[0\] must not be negative, got -1"):
        array(kind([-1, 0]))
    with pytest.raises(LLMException, match=r"src_blocks\[1\] is 10, .* below 10"):
        array(kind([9, 10]))


def test_arrays_with_repetitions_and_great_numbers():
    with pytest.raises(LLMException, match=r"src_blocks\[2\] is 7 again, after src_blocks\[0\]"):
        array(np.array([7, 1, 7]), unique=True)
    with pytest.raises(ValueError, match=r"src_blocks\[1\]"):
        array(np.array([1, 2**63], np.uint64), None)


@pytest.mark.parametrize("bad", [1.0, "1", True, None, np.bool_(True), np.float32(1)])
def test_other_elements_are_refused(bad):
    with pytest.raises(TypeError, match=r"src_blocks\[0\] must be int"):
        array([bad])
    with pytest.raises(TypeError, match=r"src_blocks\[2\] must be int"):
        array((1, 2, bad))


@pytest.mark.parametrize("blocks", [[-1], [3, -1], [-(2**70)], [10, -1], [*range(9), -1]])
def test_negative_indices(blocks):
    with pytest.raises(ValueError, match="must not be negative"):
        array(blocks)


@pytest.mark.parametrize(
    ("blocks", "place"),
    [([10], 0), ([3, 11, 12], 1), ([1, 2**63 - 1], 1), ([*range(9), 10], 9)],
)
def test_indices_beyond_the_last_block(blocks, place):
    with pytest.raises(LLMException, match=rf"src_blocks\[{place}\] is .* below 10") as error:
        array(blocks)
    assert error.value.status_code is INVALID


def test_without_a_limit():
    assert array([2**40], None).tolist() == [2**40]


@pytest.mark.parametrize("block", [2**63, 2**70, np.uint64(2**63), np.uint64(2**64 - 1)])
@pytest.mark.parametrize("before", [[], [1], list(range(9))])
@pytest.mark.parametrize("num_blocks", [None, 10])
def test_indices_that_no_cache_has(before, block, num_blocks):
    """The same whether the number of blocks is known or not."""
    text = rf"src_blocks\[{len(before)}\] must be in \[0, {2**63 - 1}\], got {block}"
    with pytest.raises(ValueError, match=text):
        array([*before, block], num_blocks)


@pytest.mark.parametrize(
    ("blocks", "place", "block"),
    [
        (range(-1, 3), 0, -1),
        (range(3, -2, -2), 2, -1),
        (range(2**63, 2**63 + 2), 0, 2**63),
        (range(2**70), 2**63, 2**63),
        (range(0, 2**65, 2**62), 2, 2**63),
    ],
)
def test_ranges_beyond_the_width_are_refused_without_looking_at_each_index(blocks, place, block):
    with pytest.raises(ValueError, match=rf"src_blocks\[{place}\] must .*, got {block}"):
        array(blocks, None)


@pytest.mark.parametrize(
    ("blocks", "place", "block"),
    [(range(2**40), 10, 10), (range(5, 90, 3), 2, 11), (range(12, -1, -4), 0, 12)],
)
def test_ranges_beyond_the_last_block_name_the_first_such_index(blocks, place, block):
    with pytest.raises(LLMException, match=rf"src_blocks\[{place}\] is {block}, the cache has 10"):
        array(blocks)


@pytest.mark.parametrize("blocks", [range(2**63), range(2**40), range(2**40, 0, -1)])
def test_ranges_that_memory_does_not_hold_are_not_expanded(blocks):
    with pytest.raises(LLMException, match="give a range of at most 268435456 blocks") as error:
        array(blocks, None)
    assert error.value.status_code is INVALID


def test_the_greatest_index_that_a_call_can_carry():
    assert array([2**63 - 1], None).tolist() == [2**63 - 1]
    assert array([5], None, highest=5).tolist() == [5]
    with pytest.raises(ValueError, match=r"must be in \[0, 5\], got 6"):
        array([6], None, highest=5)


def test_repeated_destinations():
    assert array([1, 1]).tolist() == [1, 1]
    with pytest.raises(LLMException, match=r"src_blocks\[2\] is 7 again, after src_blocks\[0\]"):
        array([7, 1, 7], unique=True)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_a_few_blocks_stay_python_integers(kind):
    few = checked_blocks(CALL, "src_blocks", kind(range(8)), 10)
    assert few == tuple(range(8))
    assert {type(block) for block in few} == {int}
    more = checked_blocks(CALL, "src_blocks", kind(range(9)), 10)
    assert (more.dtype, more.tolist()) == (np.int64, list(range(9)))


def test_a_few_blocks_do_not_follow_the_callers_list():
    listed = [3, 1]
    few = checked_blocks(CALL, "src_blocks", listed, 10)
    listed[0] = 99
    assert few == (3, 1)


def test_copy_pairs():
    sources, destinations = copy_pairs("copy_blocks", {1: [2, 3], 4: [], 5: [6]}, 10)
    assert sources.tolist() == [1, 1, 5]
    assert destinations.tolist() == [2, 3, 6]
    with pytest.raises(LLMException, match="below 10"):
        copy_pairs("copy_blocks", {1: [10]}, 10)
    assert copy_pairs("copy_blocks", {}, 10)[0].tolist() == []


def spans(src=None, dst=None, per_layer=2, src_tensors=8, dst_tensors=8):
    layouts = (
        Layout.of(range(4096, 4096 * (n + 1), 4096), 64, 1) for n in (src_tensors, dst_tensors)
    )
    return tensor_ranges(CALL, (src, dst, per_layer), *layouts)


def test_layer_ranges_become_tensor_ranges():
    assert spans() == (range(8), range(8))
    assert spans(range(1, 3), range(2, 4)) == (range(2, 6), range(4, 8))
    assert spans(range(4)) == (range(8), range(8))
    assert spans(None, range(2, 4), src_tensors=4) == (range(4), range(4, 8))
    assert spans(range(7, 8), range(1), per_layer=1) == (range(7, 8), range(1))


def test_layer_size_is_not_looked_at_without_ranges():
    assert spans(src_tensors=1, dst_tensors=1) == (range(1), range(1))
    assert spans(per_layer=3) == (range(8), range(8))


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ({"src": range(0)}, "src_layer_range"),
        ({"src": range(0), "dst": range(0)}, "src_layer_range is"),
        ({"src": range(2, 2), "dst": range(1)}, "src_layer_range is"),
        ({"dst": range(3, 1)}, "dst_layer_range"),
        ({"src": range(0, 4, 2)}, "src_layer_range"),
        ({"src": range(3, 0, -1)}, "src_layer_range"),
        ({"src": range(-1, 2)}, "src_layer_range"),
        ({"dst": range(2, 5)}, "the cache has 4 layers"),
        ({"src": range(2)}, "src_layer_range has 2 layers, dst_layer_range 4"),
        ({"src": range(3), "dst": range(2)}, "src_layer_range has 3 layers, dst_layer_range 2"),
        ({"src": range(1), "dst": range(1), "per_layer": 3}, "does not divide"),
        ({"per_layer": 0}, "tensor_num_per_layer is 0"),
        ({"per_layer": 9}, "give 1 to 8"),
        ({"src": range(1), "src_tensors": 1, "dst_tensors": 1}, "tensor_num_per_layer is 2"),
        ({"src_tensors": 6}, "6 tensors, the destination 8"),
    ],
)
def test_layer_ranges_that_do_not_fit(case, text):
    with pytest.raises(LLMException, match=text) as error:
        spans(**case)
    assert error.value.status_code is INVALID
