"""KvLayout: what it derives, and what it refuses with which numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llm_datadist import CacheDesc, DataType, LLMException, LLMStatusCode
from llm_datadist.layouts import (
    KvLayout,
    Strides,
    check_fit,
    dense,
    heads_of_rank,
    of_tensor,
    to_bytes,
)

KIND = {
    "layers": range(4),
    "kv_heads": 8,
    "heads": range(2, 6),
    "head_size": 16,
    "data_type": DataType.DT_FLOAT16,
    "block_tokens": 4,
}


def made(axes="NHD", **other):
    return dense(axes, **{**KIND, **other})


def refused(*numbers):
    return pytest.raises(LLMException, match=".*".join(map(str, numbers)))


@pytest.mark.parametrize(
    ("axes", "num_blocks", "strides", "num_tensors"),
    [
        ("NHD", None, Strides(512, token=128, head=32), 8),
        ("HND", None, Strides(512, token=32, head=128), 8),
        (("block", "plane", "token", "head", "element"), None, Strides(1024, 128, 32, 512), 4),
        (("block", "token", "head", "plane", "element"), None, Strides(1024, 256, 64, 32), 4),
        (("plane", "block", "token", "head", "element"), 3, Strides(512, 128, 32, 1536), 4),
        (("block", "layer", "token", "head", "element"), None, Strides(2048, 128, 32, 0, 512), 2),
    ],
)
def test_dense_axes_give_strides_and_tensors(axes, num_blocks, strides, num_tensors):
    layout = made(axes, num_blocks=num_blocks)
    assert layout.strides == strides
    assert layout.num_tensors == num_tensors
    assert layout.row_bytes == 32


def test_is_a_value():
    layout = made()
    assert layout == made()
    assert hash(layout) == hash(made())
    assert layout != made("HND")
    assert "heads=range(2, 6)" in repr(layout)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.kv_heads = 9


def test_blocks_may_have_padding():
    assert made(block_bytes=600).strides.block == 600
    with pytest.raises(ValueError, match=r"block_bytes must be in \[512"):
        made(block_bytes=511)


@pytest.mark.parametrize(
    ("tp_size", "tp_rank", "heads"),
    [(1, 0, range(8)), (4, 3, range(6, 8)), (8, 5, range(5, 6)), (16, 5, range(2, 3))],
)
def test_heads_of_a_rank(tp_size, tp_rank, heads):
    assert heads_of_rank(8, tp_size, tp_rank) == heads


def test_heads_that_ranks_cannot_share_evenly_are_refused():
    with refused("kv_heads is 8, tp_size 3"):
        heads_of_rank(8, 3, 0)
    with pytest.raises(ValueError, match="tp_rank"):
        heads_of_rank(8, 4, 4)


def test_a_tensor_with_strides():
    # K and V of every block, heads outside of tokens, seen through a permuted view.
    axes = ("plane", "block", "token", "head", "element")
    layout = of_tensor(
        axes, (2, 10, 4, 4, 16), (256, 512, 16, 64, 1), layers=range(4), kv_heads=8,
        heads=range(2, 6), data_type=DataType.DT_FLOAT16,
    )  # fmt: skip
    assert layout == made(("block", "plane", "head", "token", "element"))
    # A latent has no axes of heads and planes.
    latent = of_tensor(
        ("block", "token", "element"), (10, 4, 576), (2304, 576, 1), layers=range(2), kv_heads=1,
        heads=range(1), data_type=DataType.DT_BF16, planes=1,
    )  # fmt: skip
    assert latent.is_latent
    assert latent.strides == Strides(4608, token=1152)


def test_a_tensor_that_does_not_hold_the_heads_is_refused():
    with refused("shape has 3 at axis 'head', 4 are held"):
        of_tensor(
            "NHD", (10, 4, 3, 16), (192, 48, 16, 1), layers=range(4), kv_heads=8,
            heads=range(2, 6), data_type=DataType.DT_FLOAT16,
        )  # fmt: skip


def test_scattered_elements_are_refused():
    with refused("elements of a head have stride 4"):
        of_tensor(
            "HND", (10, 4, 4, 16), (256, 64, 1, 4), layers=range(4), kv_heads=8,
            heads=range(2, 6), data_type=DataType.DT_FLOAT16,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        ({"heads": range(2, 9)}, ["range\\(2, 9\\)", "kv_heads 8"]),
        ({"heads": range(3, 3)}, ["range\\(3, 3\\)"]),
        ({"layers": range(0, 4, 2)}, ["range\\(0, 4, 2\\)"]),
        ({"strides": Strides(512, token=127, head=32)}, ["strides.token is 127", "128"]),
        ({"strides": Strides(512, token=128, head=31)}, ["strides.head is 31", "32"]),
        ({"strides": Strides(511, token=128, head=32)}, ["strides.block is 511", "512"]),
        ({"strides": Strides(512, token=128, head=512)}, ["strides.head is 512", "block 512"]),
        ({"strides": Strides(0)}, ["strides.block is 0"]),
        ({"strides": Strides(512, 128, 32, plane=511)}, ["strides.plane is 511"]),
        ({"packing": "x"}, ["packing is 'x'", "rows"]),
        ({"interior": "opaque heads"}, ["packing is ''"]),
        ({"interior": "opaque blocks", "packing": "x"}, ["range\\(2, 6\\)", "opaque blocks"]),
        ({"interior": "opaque heads", "packing": "x"}, ["strides.token is 128"]),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(change, numbers):
    with refused(*numbers) as caught:
        dataclasses.replace(made(), **change)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"layers": 4}, TypeError),
        ({"kv_heads": True}, TypeError),
        ({"data_type": 1}, TypeError),
        ({"strides": (512, 128, 32, 0, 0)}, TypeError),
        ({"layers": range(70000)}, ValueError),
        ({"kv_heads": 1 << 17}, ValueError),
        ({"head_size": 0}, ValueError),
        ({"block_tokens": 1 << 25}, ValueError),
        ({"planes": 65}, ValueError),
        ({"strides": Strides(1 << 49)}, ValueError),
        ({"packing": "x" * 65}, ValueError),
        ({"interior": "mixed"}, ValueError),
    ],
)
def test_wrong_types_and_widths(change, error):
    with pytest.raises(error):
        dataclasses.replace(made(), **change)


def test_numbers_of_numpy_are_kept_as_plain_integers():
    plain = made()
    numbers = {
        name: np.int64(getattr(plain, name)) for name in ("kv_heads", "head_size", "block_tokens")
    }
    layout = dataclasses.replace(plain, **numbers, strides=Strides(*map(np.int64, plain.strides)))
    assert layout == plain
    assert to_bytes(layout) == to_bytes(plain)


def test_axes_must_be_complete():
    with refused("axes is \\('block', 'head', 'element'\\)"):
        made(("block", "head", "element"))
    with refused("axes is 'DHN'"):
        made("DHN")
    with refused("'plane' is outside of 'block'"):
        made(("plane", "block", "token", "head", "element"))
    with pytest.raises(TypeError, match="axes must be"):
        made(7)


# check_fit: the text names the number that is off.


def desc(num_tensors=8, shape=(10, 4, 4, 16), data_type=DataType.DT_FLOAT16):
    return CacheDesc(num_tensors, list(shape), data_type)


def test_a_layout_fits_the_cache_that_it_describes():
    check_fit(made(), desc())
    check_fit(made(), desc(shape=(10, 512), data_type=DataType.DT_INT8))
    check_fit(made(("block", "plane", "token", "head", "element")), desc(4, (10, 2, 4, 4, 16)))


@pytest.mark.parametrize(
    ("layout", "cache", "numbers"),
    [
        (made(), desc(num_tensors=4), ["num_tensors is 4", "layout has 8"]),
        (made(), desc(data_type=DataType.DT_BF16), ["DT_BF16", "DT_FLOAT16"]),
        (made(), desc(shape=(10, 8, 4, 16)), ["1024 bytes", "block is 512"]),
        (
            made(("plane", "block", "token", "head", "element"), num_blocks=10),
            desc(4, (2, 10, 4, 4, 16)),
            ["strides.plane is 5120", "block 512"],
        ),
    ],
)
def test_a_layout_that_does_not_fit_its_cache_is_refused(layout, cache, numbers):
    with refused(*numbers):
        check_fit(layout, cache, "register_blocks_cache")


def test_planes_outside_of_blocks_must_not_overlap():
    axes = ("plane", "block", "token", "head", "element")
    layout = made(axes, num_blocks=3)
    layout.check_blocks(3)
    with refused("strides.plane is 1536", 2048):
        layout.check_blocks(4)
    assert layout.tensor_bytes(3) == 3072


def test_opaque_layouts():
    packed = dense(
        ("block", "head", "element"),
        **{**KIND, "interior": "opaque heads", "packing": "amx bf16"},
    )
    assert packed.row_bytes == 128
    assert packed.strides == Strides(512, head=128)
    state = KvLayout(
        range(3), 2, range(1, 2), 1000, DataType.DT_INT8, 64, Strides(1024), 1, "opaque blocks", "s"
    )
    assert (state.row_bytes, state.num_tensors) == (1000, 3)
