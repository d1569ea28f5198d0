"""Shapes of the KV caches of public models, as their `config.json` files give them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llm_datadist.cli.bench.work import Case

__all__ = ["PRESETS", "Preset", "preset"]

_ELEMENT_BYTES = {"bf16": 2, "fp8": 1}


@dataclass(frozen=True)
class Preset:
    """KV cache of one rank of a model: a tensor for K and one for V of each layer.

    Attributes:
        name: Of the model.
        layers: Number of layers.
        kv_heads: KV heads of the whole model; 1 for a latent cache.
        head_size: Elements of one head of one token; of a latent row, of its two parts.
        data_type: "bf16" or "fp8".
        block_tokens: Tokens of a block.
        tp: Number of ranks that share the KV heads.
        is_latent: Whether the cache is that of multi-head latent attention (MLA), which has one
            tensor for each layer, the same in every rank.
    """

    name: str
    layers: int
    kv_heads: int
    head_size: int
    data_type: str = "bf16"
    block_tokens: int = 16
    tp: int = 1
    is_latent: bool = False

    @property
    def heads(self) -> int:
        """KV heads of one rank."""
        return max(1, self.kv_heads // self.tp)

    @property
    def tensors(self) -> int:
        """Tensors of one rank."""
        return self.layers * (1 if self.is_latent else 2)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in one tensor."""
        row_bytes = self.head_size * _ELEMENT_BYTES[self.data_type]
        return self.block_tokens * self.heads * row_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in all tensors of one rank."""
        return self.tensors * self.block_bytes // self.block_tokens

    def case(self, prompt_tokens: int) -> Case:
        """Return the transfer of a prompt of this length."""
        blocks = -(-prompt_tokens // self.block_tokens)
        total_bytes = blocks * self.block_bytes * self.tensors
        name = f"{self.name}, {prompt_tokens:,} tokens"
        return Case(name, self.block_bytes, total_bytes, tensors=self.tensors)

    def with_tp(self, tp: int) -> Preset:
        """Return the cache of one of `tp` ranks.

        Raises:
            ValueError: The KV heads cannot be divided over so many.
        """
        if not self.is_latent and self.kv_heads % tp and tp % self.kv_heads:
            raise ValueError(
                f"--tp {tp}: {self.name} has {self.kv_heads} KV heads; give a divisor or a "
                "multiple of that"
            )
        return replace(self, tp=tp)


PRESETS = {
    each.name: each
    for each in (
        Preset("llama-3.1-8b", layers=32, kv_heads=8, head_size=128),
        Preset("llama-3.1-70b", layers=80, kv_heads=8, head_size=128, tp=4),
        Preset("llama-3.1-405b", layers=126, kv_heads=8, head_size=128, tp=8),
        Preset("mistral-7b-v0.3", layers=32, kv_heads=8, head_size=128),
        Preset("qwen2.5-7b", layers=28, kv_heads=4, head_size=128),
        Preset("qwen3-32b", layers=64, kv_heads=8, head_size=128, tp=2),
        Preset("qwen3-235b-a22b", layers=94, kv_heads=4, head_size=128, tp=4),
        Preset(
            "deepseek-v2-lite",
            layers=27,
            kv_heads=1,
            head_size=512 + 64,
            block_tokens=64,
            is_latent=True,
        ),
        Preset(
            "deepseek-v3",
            layers=61,
            kv_heads=1,
            head_size=512 + 64,
            block_tokens=64,
            tp=8,
            is_latent=True,
        ),
    )
}
"""By name, with the tensor parallel size and the block size that are usual."""


def preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        ValueError: There is none.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"--preset {name}: unknown; give one of {', '.join(PRESETS)}") from None
