"""What of a worker's KV memory belongs to which head and token; in doubt, nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from llm_datadist import DataType
from llm_datadist.integrations.vllm.kv_layout import kv_layout_of
from llm_datadist.integrations.vllm.rank_layouts import Indivisible, peers_of, rank_layouts_of
from support.vllm.objects import (
    FullAttentionSpec,
    MLAAttentionSpec,
    Tensor,
    UniformTypeKVCacheSpecs,
    attention_layer,
    kv_cache_config,
    vllm_config,
)

BLOCKS, TOKENS, SIZE = 6, 4, 8
NAMES = ["layer0", "layer1"]
CPU = attention_layer("CPU_ATTN", "vec")


def known(
    tensors, kind=FullAttentionSpec, layer=CPU, *, tp_size=1, rank=0, kv_heads=4, tokens=TOKENS,
    specs=None, cache_dtype="auto", **spec,
):  # fmt: skip
    """RankLayouts of a worker with these tensors, each of one layer."""
    spec = {"num_kv_heads": tensors[0].shape[1], "head_size": SIZE, "dtype": "torch.float32"} | spec
    names = NAMES[: len(tensors)]
    caches = dict(zip(names, map(Tensor, tensors), strict=True))
    cache_config = kv_cache_config([names], BLOCKS, tokens, kind, **spec)
    if specs is not None:
        by_layer = dict(zip(names, specs, strict=True))
        group = UniformTypeKVCacheSpecs(block_size=tokens, kv_cache_specs=by_layer)
        cache_config.kv_cache_groups[0].kv_cache_spec = group
    config = vllm_config(
        tp_size=tp_size, rank=rank, kv_heads=kv_heads, attention=dict.fromkeys(names, layer)
    )
    config.cache_config.cache_dtype = cache_dtype
    memory = kv_layout_of(caches, cache_config, rank)
    return rank_layouts_of(memory, caches, cache_config, config)


def packed(heads=4, *, tokens=TOKENS, size=SIZE, dtype=np.float32):
    return [np.zeros((BLOCKS, heads, tokens, 2 * size), dtype) for _ in NAMES]


def latents(tokens=TOKENS):
    return [np.zeros((BLOCKS, 1, tokens, SIZE), np.float32) for _ in NAMES]


MLA = {"kind": MLAAttentionSpec, "layer": attention_layer("CPU_MLA")}


def test_heads_of_cpu_attention():
    layouts = known(packed(2), tp_size=2, rank=1)
    (part,) = layouts.parts
    assert (part.kv_heads, part.heads, part.layers) == (4, range(2, 4), range(2))
    assert (part.interior, part.packing) == ("opaque heads", "CPU_ATTN vec")
    assert part.row_bytes == TOKENS * SIZE * 4
    assert part.strides.head == 2 * part.row_bytes, "K of a head, then V, then the next head"
    assert part.strides.plane == part.row_bytes
    assert layouts.backends == "CPU_ATTN vec"
    assert layouts.describe() == "group 0: 4 KV heads of 8 DT_FLOAT, 2 planes, CPU_ATTN vec"


def test_latents_are_rows_that_every_rank_has():
    layouts = known(latents(), **MLA, tp_size=4, rank=3)
    (part,) = layouts.parts
    assert part.is_latent
    assert (part.heads, part.row_bytes, part.strides.token) == (range(1), SIZE * 4, SIZE * 4)
    assert layouts.of_rank(2, 0, [16])[0].block_tokens == 16


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_what_is_expected_of_a_rank_is_what_that_rank_has(tp_size, kv_heads):
    own = known(packed(kv_heads), kv_heads=kv_heads)
    for rank in range(tp_size):
        held = max(1, kv_heads // tp_size)
        other = known(packed(held), tp_size=tp_size, rank=rank, kv_heads=kv_heads)
        assert own.of_rank(tp_size, rank, [TOKENS]) == other.parts
        assert other.of_rank(1, 0, [TOKENS]) == own.parts
        assert own.describe() == other.describe()


def test_layers_of_unequal_sizes_are_parts_of_their_own():
    tensors = [packed(4)[0], packed(4, size=2 * SIZE)[1]]
    spec = {"block_size": TOKENS, "num_kv_heads": 4, "dtype": "torch.float32"}
    specs = [FullAttentionSpec(head_size=size, **spec) for size in (SIZE, 2 * SIZE)]
    parts = known(tensors, specs=specs).parts
    assert [part.head_size for part in parts] == [SIZE, 2 * SIZE]
    assert [len(part.layers) for part in parts] == [1, 1]


TRANSPOSED = [tensor.transpose(0, 2, 1, 3) for tensor in packed(TOKENS, tokens=4)]


@pytest.mark.parametrize(
    ("tensors", "more", "text"),
    [
        (packed(), {"layer": attention_layer("CPU_ATTN")}, "backend CPU_ATTN"),
        (packed(), {"layer": attention_layer("FLASH_ATTN", "vec")}, "backend FLASH_ATTN"),
        (packed(), {"layer": None}, "backend unknown"),
        (packed(), MLA, "strides.head is 0 bytes, its row has 32"),
        (
            latents(),
            {**MLA, "kind": FullAttentionSpec},
            "FullAttentionSpec of the backend CPU_MLA|holds",
        ),
        (packed(), {"kv_quant_mode": 1}, "kv_quant_mode 1"),
        (packed(), {"page_size_padded": 4096}, "page_size_padded"),
        (packed(), {"num_head_slots": 2}, "num_head_slots"),
        (packed(), {"dtype": "torch.complex64"}, "complex64"),
        (packed(), {"head_size_v": 4}, "head_size_v"),
        (packed(), {"dtype": "torch.float16"}, "without gaps"),
        (packed(), {"kv_heads": 8}, "holds 8 of 8"),
        (packed(2), {"kv_heads": 4, "tp_size": 4}, "holds 1 of 4"),
        (packed(), {"head_size": 16}, "without gaps"),
        (packed(tokens=2 * TOKENS), {}, "without gaps"),
        (TRANSPOSED, {}, "without gaps"),
    ],
)
def test_what_is_not_understood_is_not_known(tensors, more, text):
    layouts = known(tensors, **more)
    assert layouts.parts == ()
    assert layouts.problem.startswith("the layout of the KV cache is not known (")
    assert layouts.describe() == layouts.problem
    with pytest.raises(Indivisible, match=text):
        layouts.of_rank(2, 0, [TOKENS])


def test_layers_of_one_size_with_other_heads_are_not_known():
    spec = {"block_size": TOKENS, "dtype": "torch.float32"}
    specs = [
        FullAttentionSpec(num_kv_heads=4, head_size=SIZE, **spec),
        FullAttentionSpec(num_kv_heads=2, head_size=2 * SIZE, **spec),
    ]
    tensors = [packed(4)[0], packed(2, size=2 * SIZE)[1]]
    assert known(tensors, specs=specs).parts == ()


def test_a_quantized_cache_is_not_known():
    assert "the KV cache dtype is fp8" in known(packed(), cache_dtype="fp8").problem


def test_layers_with_another_block_size_than_their_group_are_not_known():
    spec = {"num_kv_heads": 1, "head_size": SIZE, "dtype": "torch.float32"}
    specs = [MLAAttentionSpec(block_size=TOKENS, **spec)] * 2
    layouts = known(latents(), **MLA, tokens=2 * TOKENS, specs=specs)
    assert "has block size 4, its group 8" in layouts.problem


def test_a_model_without_the_attributes_is_not_known():
    config = vllm_config()
    del config.compilation_config
    cache_config = kv_cache_config([NAMES], BLOCKS, TOKENS)
    caches = dict(zip(NAMES, map(Tensor, packed()), strict=True))
    layouts = rank_layouts_of(kv_layout_of(caches, cache_config, 0), caches, cache_config, config)
    assert (layouts.parts, layouts.backends) == ((), "")


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        (
            (2, 0, [8]),
            "size 2 and block size 8, the consumer tensor parallel size 1 and block size 4: CPU_",
        ),
        ((3, 0, [4]), "tensor parallel size 3 .* kv_heads is 4, tp_size 3"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_both_values(sizes, text):
    with pytest.raises(Indivisible, match=text):
        known(packed()).of_rank(*sizes)


def test_packed_blocks_and_types():
    (part,) = known(packed(dtype=np.float16), dtype="torch.bfloat16").parts
    assert part.data_type is DataType.DT_BF16


@pytest.mark.parametrize("first", [1, 2, 4, 8])
@pytest.mark.parametrize("second", [1, 2, 4, 8])
def test_peers_are_mutual(first, second):
    pairs = {(rank, peer) for rank in range(first) for peer in peers_of(first, rank, second)}
    assert pairs == {
        (rank, peer) for peer in range(second) for rank in peers_of(second, peer, first)
    }
    assert {rank for rank, _ in pairs} == set(range(first))


@pytest.mark.parametrize(("own", "peer"), [(2, 3), (4, 6), (1, 0), (1, -1), (1, 1 << 70)])
def test_sizes_without_peers(own, peer):
    with pytest.raises(Indivisible, match=f"{own} and {peer}: one must be a multiple"):
        peers_of(own, 0, peer)


def test_ranks_that_hold_the_same():
    shared = known(packed(1), tp_size=4, rank=1, kv_heads=2)
    assert [shared.repeated(rank) for rank in range(4)] == [{0}, {0}, set(), set()]
    assert known(latents(), **MLA, tp_size=2, rank=1).repeated(0) == {0}
    with pytest.raises(Indivisible):
        known(packed(), layer=None).repeated(0)
