"""The parts of vLLM's objects that the connector uses, for tests without vLLM."""

from __future__ import annotations

from types import SimpleNamespace


def request(request_id="r", tokens=range(100), params=None, **more):
    """A request of vLLM's scheduler."""
    fields = {
        "request_id": request_id,
        "prompt_token_ids": list(tokens),
        "prompt_embeds": None,
        "lora_request": None,
        "mm_features": [],
        "sampling_params": SimpleNamespace(prompt_logprobs=None),
        "max_tokens": 1,
        "_all_token_ids": list(tokens),
        "num_prompt_tokens": len(tokens),
        "num_computed_tokens": len(tokens),
        "kv_transfer_params": params,
        "trace_headers": None,
        "status": SimpleNamespace(name="FINISHED_LENGTH_CAPPED"),
    }
    return SimpleNamespace(**{**fields, **more})


class FullAttentionSpec(SimpleNamespace):
    """A kind of KV cache; without more than a block size, what its blocks hold is not known."""


class MLAAttentionSpec(SimpleNamespace):
    """Latents."""


class UniformTypeKVCacheSpecs(SimpleNamespace):
    """A group whose layers have specs of their own."""


class MambaSpec(SimpleNamespace):
    """A running state; `one` has usual attributes."""

    @classmethod
    def one(cls, **more):
        fields = {
            "block_size": 32, "shapes": ((3, 4), (2, 2)), "dtypes": ("float32", "float32"),
            "mamba_type": "MAMBA2", "mamba_cache_mode": "align", "num_speculative_blocks": 0,
            "page_size_bytes": 128,
        }  # fmt: skip
        return cls(**{**fields, **more})


class CrossAttentionSpec(SimpleNamespace):
    """Another kind."""


class Tensor:
    """An array with torch's names."""

    def __init__(self, array, device="cpu", offset=0):
        self.array = array
        self.shape = array.shape
        self.device = device
        self._offset = offset

    def storage_offset(self):
        return self._offset

    def stride(self):
        return tuple(stride // self.array.itemsize for stride in self.array.strides)

    def element_size(self):
        return self.array.itemsize

    def data_ptr(self):
        return self.array.ctypes.data


def kv_cache_config(groups, num_blocks, block_size, spec=FullAttentionSpec, **more):
    """KVCacheConfig with one group for each list of layer names; `more` goes into their specs."""
    return SimpleNamespace(
        num_blocks=num_blocks,
        kv_cache_groups=[
            SimpleNamespace(layer_names=names, kv_cache_spec=spec(block_size=block_size, **more))
            for names in groups
        ],
    )


def attention_layer(backend, isa=None):
    """An attention layer of a backend; CPU attention names the order in which it packs tokens."""
    more = {} if isa is None else {"isa": isa}
    return SimpleNamespace(attn_backend=SimpleNamespace(get_name=lambda: backend), **more)


def vllm_config(
    *, layers=2, found_at="/a", tp_size=1, pp_size=1, rank=0, kv_heads=4, attention=None, **model
):
    """VllmConfig of a model on one worker; `attention` has its attention layers by name."""
    hf_fields = {"num_hidden_layers": layers, "_name_or_path": found_at, "dtype": object()}
    hf_config = SimpleNamespace(architectures=["X"], to_dict=lambda: hf_fields)
    fields = {"model": "m", "revision": None, "dtype": "float32", "quantization": None}
    return SimpleNamespace(
        model_config=SimpleNamespace(
            **{**fields, **model}, hf_config=hf_config, get_total_num_kv_heads=lambda: kv_heads
        ),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=tp_size, pipeline_parallel_size=pp_size, rank=rank
        ),
        compilation_config=SimpleNamespace(static_forward_context=attention or {}),
    )
