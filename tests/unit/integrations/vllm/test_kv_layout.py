"""KV tensors of every layout become runs of blocks that cover the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from llm_datadist.integrations.vllm.kv_layout import kv_layout_of
from support.vllm.objects import (
    CrossAttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    Tensor,
    UniformTypeKVCacheSpecs,
    kv_cache_config,
)

L, B, H, N, C = 3, 6, 2, 4, 8
PAGE = 128


def config(groups=None, num_blocks=B, **more):
    groups = groups or [[f"layer{i}" for i in range(L)]]
    return kv_cache_config(groups, num_blocks, N, **more)


def layers(order):
    """Views [B, H, N, C] of the layers of memory whose axes L, B, H, N, C are in this order."""
    memory = np.zeros([(L, B, H, N, C)[axis] for axis in order], np.float32)
    logical = memory.transpose(np.argsort(order))
    return memory, {f"layer{i}": Tensor(logical[i]) for i in range(L)}


ORDERS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_block_of_the_layout_is_that_block_of_every_layer(order):
    memory, tensors = layers(order)
    layout = kv_layout_of(tensors, config(), rank=0)
    base, raw = memory.ctypes.data, memory.view(np.uint8).reshape(-1)
    for part in layout.parts:
        assert part.num_blocks == B
        for addr in part.addrs:
            start = addr - base + 2 * part.block_bytes
            raw[start : start + part.block_bytes] = 1
    for tensor in tensors.values():
        touched = (tensor.array != 0).any(axis=(1, 2, 3))
        assert touched.tolist() == [block == 2 for block in range(B)]
        assert (tensor.array[2] != 0).all()


def test_one_tensor_a_layer_in_the_plain_layout():
    _, tensors = layers(ORDERS["LBHNC"])
    (part,) = kv_layout_of(tensors, config(), rank=5).parts
    assert part.addrs == tuple(tensor.data_ptr() for tensor in tensors.values())
    assert part.block_bytes == H * N * C * 4
    assert part.layers == ("layer0", "layer1", "layer2")


def test_tensors_are_in_the_order_of_their_layers_not_of_their_addresses():
    _, tensors = layers(ORDERS["LBHNC"])
    backwards = dict(zip(tensors, list(tensors.values())[::-1], strict=True))
    (part,) = kv_layout_of(backwards, config(), rank=0).parts
    assert part.layers == ("layer0", "layer1", "layer2")
    assert part.addrs == tuple(tensor.data_ptr() for tensor in backwards.values())
    assert list(part.addrs) == sorted(part.addrs, reverse=True)


def test_kernel_blocks_that_are_smaller_than_blocks():
    _, tensors = layers(ORDERS["LBHNC"])
    (part,) = kv_layout_of(tensors, config(num_blocks=B // 2), rank=0).parts
    assert (part.num_blocks, part.block_bytes) == (B // 2, 2 * H * N * C * 4)


def test_groups_over_the_same_memory():
    _, tensors = layers(ORDERS["LBHNC"])
    tensors = {"a": tensors["layer0"], "b": tensors["layer0"], "c": tensors["layer1"]}
    layout = kv_layout_of(tensors, config([["a", "c"], ["b"]]), rank=0)
    assert [(part.group, len(part.addrs)) for part in layout.parts] == [(0, 2), (1, 1)]
    assert layout.parts[0].addrs[0] == layout.parts[1].addrs[0]


def states_of(page=PAGE, offset=0):
    """Pages of a layer with two states, and views of both; the pages are padded."""
    raw = np.zeros((B, page // 4), np.float32)
    first, second = raw[:, :12].reshape(B, 3, 4), raw[:, 12:16].reshape(B, 2, 2)
    return raw, [Tensor(first, offset=offset), Tensor(second, offset=offset + 12)]


def with_states(spec):
    mixed = config([["layer0", "layer2"], ["state"]])
    mixed.kv_cache_groups[1].kv_cache_spec = spec
    return mixed


@pytest.mark.parametrize("offset", [0, 3 * PAGE // 4])
def test_a_block_of_states_is_a_page_with_all_of_them(offset):
    _, tensors = layers(ORDERS["LBHNC"])
    raw, states = states_of(offset=offset)
    layout = kv_layout_of(tensors | {"state": states}, with_states(MambaSpec.one()), rank=0)
    assert [part.group for part in layout.parts] == [0, 1]
    part = layout.parts[1]
    assert (part.addrs, part.num_blocks, part.block_bytes) == ((raw.ctypes.data,), B, PAGE)
    assert layout.has_states


def test_states_that_equal_pages_hide_are_compared():
    """Their types and shapes are in the facts, as a page may be padded."""
    _, tensors = layers(ORDERS["LBHNC"])
    _, states = states_of()
    texts = {
        kv_layout_of(tensors | {"state": states}, with_states(MambaSpec.one(**more)), rank=0).groups
        for more in (
            {},
            {"dtypes": ("float32", "float16")},
            {"shapes": ((4, 3), (2, 2))},
            {"mamba_cache_mode": "none"},
            {"mamba_type": "GDN"},
        )
    }
    assert len(texts) == 5


@pytest.mark.parametrize(
    ("page", "offset", "said"),
    [(PAGE, 1, PAGE), (PAGE, 0, 2 * PAGE), (PAGE, 0, 32), (PAGE, 0, 60)],
    ids=["not at its begin", "larger", "beside each other", "too small"],
)
def test_states_that_are_not_in_pages_are_refused(page, offset, said):
    _, tensors = layers(ORDERS["LBHNC"])
    _, states = states_of(page, offset)
    with pytest.raises(ValueError, match=r"not in pages|between blocks"):
        kv_layout_of(
            tensors | {"state": states}, with_states(MambaSpec.one(page_size_bytes=said)), rank=0
        )


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"mamba_cache_mode": "all"}, 'mamba_cache_mode "all"; write --mamba-cache-mode "align"'),
        ({"num_speculative_blocks": 2}, "run the engine without it"),
    ],
)
def test_states_that_are_kept_in_another_way_are_refused_with_the_kinds_of_all_groups(more, text):
    _, tensors = layers(ORDERS["LBHNC"])
    tensors["state"] = states_of()[1]
    with pytest.raises(ValueError, match=r"group 1 is a MambaSpec") as error:
        kv_layout_of(tensors, with_states(MambaSpec.one(**more)), rank=0)
    assert text in str(error.value)
    assert "(the model has group 0: FullAttentionSpec; group 1: MambaSpec)" in str(error.value)


def test_states_and_tokens_in_one_group_are_refused():
    _, tensors = layers(ORDERS["LBHNC"])
    tensors["state"] = states_of()[1]
    specs = {"layer0": FullAttentionSpec(), "state": MambaSpec.one()}
    inner = config([list(specs)])
    inner.kv_cache_groups[0].kv_cache_spec = UniformTypeKVCacheSpecs(
        block_size=4, kv_cache_specs=specs
    )
    with pytest.raises(ValueError, match="other layers of its group hold no states"):
        kv_layout_of(tensors, inner, rank=0)


def test_kinds_inside_of_a_group_are_named():
    _, tensors = layers(ORDERS["LBHNC"])
    specs = {"layer0": FullAttentionSpec(), "layer1": CrossAttentionSpec(), "layer2": MambaSpec()}
    inner = config()
    inner.kv_cache_groups[0].kv_cache_spec = UniformTypeKVCacheSpecs(
        block_size=4, kv_cache_specs=specs
    )
    with pytest.raises(ValueError, match="is a CrossAttentionSpec: its blocks hold something else"):
        kv_layout_of(tensors, inner, rank=0)


def test_what_cannot_be_moved_is_refused():
    _, tensors = layers(ORDERS["LBHNC"])
    with pytest.raises(ValueError, match="does not count its 7 blocks"):
        kv_layout_of(tensors, config(num_blocks=7), rank=0)
    with pytest.raises(ValueError, match="cuda:0"):
        kv_layout_of({"layer0": Tensor(tensors["layer0"].array, "cuda:0")}, config([["layer0"]]), 0)
    _, beside = layers(ORDERS["BLHNC"])
    with pytest.raises(ValueError, match="between blocks"):
        kv_layout_of({"layer0": beside["layer0"]}, config([["layer0"]]), rank=0)
