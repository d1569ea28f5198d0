"""Layouts from objects with the attributes of vLLM's specs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llm_datadist import DataType, LLMException
from llm_datadist.layouts import Strides, of_vllm_spec


class FullAttentionSpec(SimpleNamespace):
    pass


class MLAAttentionSpec(SimpleNamespace):
    pass


class MambaSpec(SimpleNamespace):
    pass


def attention(**other):
    values = {"block_size": 16, "num_kv_heads": 2, "head_size": 64, "dtype": "torch.bfloat16"}
    return FullAttentionSpec(**{**values, **other})


def test_attention():
    layout = of_vllm_spec(attention(), layers=range(4), tp_size=4, tp_rank=1)
    assert (layout.kv_heads, layout.heads) == (8, range(2, 4))
    assert layout.strides == Strides(8192, token=256, head=128, plane=4096)
    assert layout.data_type is DataType.DT_BF16
    assert layout.num_tensors == 4


def test_a_tensor_of_vllm_shows_its_axes():
    axes = ("plane", "block", "token", "head", "element")
    layout = of_vllm_spec(
        attention(), layers=range(4), tp_size=4, tp_rank=1, axes=axes,
        shape=(2, 100, 16, 2, 64), strides=(2048, 4096, 64, 1024, 1),
    )  # fmt: skip
    assert layout.strides == Strides(8192, token=128, head=2048, plane=4096)


def test_heads_shared_by_ranks():
    spec = attention(num_kv_heads=1)
    layout = of_vllm_spec(spec, layers=range(4), tp_size=4, tp_rank=3, kv_heads=2)
    assert layout.heads == range(1, 2)
    with pytest.raises(LLMException, match=r"num_kv_heads 1, rank 0 of 2 holds 4 of 8"):
        of_vllm_spec(spec, layers=range(4), tp_size=2, kv_heads=8)


def test_latent_padding_and_one_byte_types():
    spec = MLAAttentionSpec(
        block_size=64, num_kv_heads=1, head_size=576, dtype="torch.float8_e4m3fn",
        page_size_padded=40960,
    )  # fmt: skip
    layout = of_vllm_spec(spec, layers=range(61), tp_size=8, tp_rank=5)
    assert layout.is_latent
    assert layout.heads == range(1)
    assert layout.strides == Strides(40960, token=576)


def test_tokens_packed_within_a_head():
    layout = of_vllm_spec(
        attention(), layers=range(4), tp_size=4, tp_rank=1, packing="cpu amx",
        axes=("plane", "block", "head", "token", "element"), shape=(2, 100, 2, 16, 64),
    )  # fmt: skip
    assert layout.interior == "opaque heads"
    assert layout.row_bytes == 2048
    assert layout.strides == Strides(4096, head=2048, plane=409600)


def test_states():
    spec = MambaSpec(block_size=512, shapes=((3, 4), (5,)), dtypes=(), page_size_bytes=1000)
    layout = of_vllm_spec(spec, layers=range(2), tp_size=2, tp_rank=1)
    assert layout.interior == "opaque blocks"
    assert (layout.kv_heads, layout.heads, layout.row_bytes) == (2, range(1, 2), 1000)


def test_named_axes_have_the_padding_of_the_spec():
    spec = attention(page_size_padded=5000)
    layout = of_vllm_spec(spec, layers=range(4), axes="NHD")
    assert layout.strides.block == 5000


def test_arguments_that_do_not_fit_are_named():
    spec = MambaSpec(block_size=512, shapes=(), page_size_bytes=1000)
    with pytest.raises(TypeError, match="layers must be range"):
        of_vllm_spec(spec, layers=4)
    with pytest.raises(LLMException, match=r"shape is \(2,\), the axes are"):
        of_vllm_spec(attention(), layers=range(4), shape=(2,))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (attention(dtype="torch.complex64"), "complex64"),
        (attention(head_size_v=32), "head_size_v 32"),
        (SimpleNamespace(block_size=16), "SimpleNamespace is no KV cache spec"),
        (object(), "object is no KV cache spec"),
    ],
)
def test_other_specs_are_refused(spec, text):
    with pytest.raises(LLMException, match=text):
        of_vllm_spec(spec, layers=range(4))
