"""What one rank's blocks cache holds, and where each row of it lies.

The bytes of a cache are *rows*: contiguous elements that are moved as one. A row belongs to a
layer, a plane (K or V; a latent cache has one plane), a token and a KV head. Its address is::

    tensor(layer, plane) + block * strides.block + token * strides.token
        + head * strides.head [+ plane * strides.plane] [+ layer * strides.layer]

with token, head, plane and layer counted from the first that the cache holds. In an opaque interior
a row has all tokens of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, final

from llm_datadist._errors import LLMException, invalid
from llm_datadist._types import DataType
from llm_datadist._types.checks import check_instance, check_int, check_range, check_str
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Interior", "KvLayout", "Strides"]

Interior: TypeAlias = Literal["rows", "opaque heads", "opaque blocks"]

INTERIORS: tuple[Interior, ...] = ("rows", "opaque heads", "opaque blocks")
MAX_LAYERS = 1 << 12
MAX_HEADS = 1 << 16
MAX_HEAD_SIZE = 1 << 32
MAX_BLOCK_TOKENS = 1 << 24
MAX_PLANES = 64
MAX_STRIDE = 1 << 48
MAX_PACKING = 64

_NUMBERS = {
    "kv_heads": MAX_HEADS,
    "head_size": MAX_HEAD_SIZE,
    "block_tokens": MAX_BLOCK_TOKENS,
    "planes": MAX_PLANES,
}
_OPERATION = "KvLayout"


class Strides(NamedTuple):
    """Bytes between neighbors along each axis.

    Attributes:
        block: From a block to the next one.
        token: From a token to the next one in its block; 0 in an opaque interior.
        head: From a KV head to the next one; 0 if the cache holds one head.
        plane: From K to V; 0 if each plane has tensors of its own, or there is one plane.
        layer: From a layer to the next one; 0 if each layer has tensors of its own.
    """

    block: int
    token: int = 0
    head: int = 0
    plane: int = 0
    layer: int = 0


class Axis(NamedTuple):
    """An axis inside the tensors of a cache, with its number of indices and its stride in bytes."""

    name: str
    size: int
    stride: int


@names_calls
@final
@dataclass(frozen=True, slots=True)
class KvLayout:
    """Layout of one rank's blocks cache *(extension)*.

    Made by hand from all fields, or by `dense`, `of_tensor` and `of_vllm_spec` of
    `llm_datadist.layouts`. Immutable, hashable, equal by value; independent of addresses and of the
    number of blocks.

    Attributes:
        layers: Layers that the cache holds, numbered over the whole model.
        kv_heads: KV heads of the whole model. In opaque blocks: shards of the state.
        heads: Those that the cache holds. Ranks may hold the same ones (replicated heads).
        head_size: Elements of one head of one token. In opaque blocks: elements of one block in one
            plane.
        data_type: Element type.
        block_tokens: Tokens of one block.
        strides: Bytes between neighbors along each axis.
        planes: 2 (K and V), or 1 (latent). In opaque blocks: tensors of one layer.
        interior: "rows": head_size elements are contiguous, and tokens and heads can be moved one
            by one. "opaque heads": the tokens of one head in one block are contiguous, packed in an
            unknown order. "opaque blocks": so is the whole block, of one shard.
        packing: Name of the order in an opaque interior, at most 64 characters; only equal ones are
            moved. Empty for rows.

    Raises:
        TypeError: A wrong type.
        ValueError: A number outside its width, or too large for a layout that peers accept.
        LLMException: LLM_PARAM_INVALID: numbers that do not fit together, such as strides by which
            rows overlap. The text has both.
    Source: docs/design/layouts.md.
    """

    layers: range
    kv_heads: int
    heads: range
    head_size: int
    data_type: DataType
    block_tokens: int
    strides: Strides
    planes: int = 2
    interior: Interior = "rows"
    packing: str = ""

    def __post_init__(self) -> None:
        _check_span("layers", self.layers, MAX_LAYERS)
        _check_span("heads", self.heads, MAX_HEADS)
        check_instance("data_type", self.data_type, DataType)
        for name, most in _NUMBERS.items():  # plain integers: numpy's would wrap, or not be encoded
            object.__setattr__(self, name, check_int(name, getattr(self, name), 1, most))
        named = check_instance("strides", self.strides, Strides)._asdict().items()
        strides = [check_int(f"strides.{name}", stride, 0, MAX_STRIDE) for name, stride in named]
        object.__setattr__(self, "strides", Strides(*strides))
        if len(check_str("packing", self.packing)) > MAX_PACKING or not self.packing.isascii():
            raise ValueError(f"packing must be at most {MAX_PACKING} ASCII characters")
        if check_str("interior", self.interior) not in INTERIORS:
            raise ValueError(f"interior must be one of {INTERIORS}, got {self.interior!r}")
        self._check_heads()
        self._check_interior()
        self._check_strides()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: what is contiguous whatever the strides."""
        tokens = self.block_tokens if self.interior == "opaque heads" else 1
        return self.head_size * tokens * self.data_type.itemsize

    @property
    def tensors_per_layer(self) -> int:
        """Tensors of one layer, also where they hold all layers."""
        return 1 if self.strides.plane else self.planes

    @property
    def num_tensors(self) -> int:
        """Tensors of the cache."""
        return self.tensors_per_layer * (1 if self.strides.layer else len(self.layers))

    @property
    def is_latent(self) -> bool:
        """Whether a token has one vector, which ranks may divide at any element."""
        return self.planes == 1 and self.interior == "rows"

    def axes(self) -> Iterator[Axis]:
        """Yield the axes inside a tensor but that of blocks; those of one index too."""
        strides = self.strides
        if self.interior == "rows":
            yield Axis("token", self.block_tokens, strides.token)
        yield Axis("head", len(self.heads), strides.head)
        if strides.plane:
            yield Axis("plane", self.planes, strides.plane)
        if strides.layer:
            yield Axis("layer", len(self.layers), strides.layer)

    def tensor_bytes(self, num_blocks: int) -> int:
        """Bytes from the first row of a tensor of `num_blocks` blocks to the end of the last."""
        inside = sum((axis.size - 1) * axis.stride for axis in self.axes())
        return inside + (num_blocks - 1) * self.strides.block + self.row_bytes

    def check_blocks(self, num_blocks: int) -> None:
        """Refuse strides by which rows of different blocks overlap.

        Raises:
            LLMException: LLM_PARAM_INVALID, with the stride and the bytes that it must cover.
        """
        _check_nested([*self.axes(), Axis("block", num_blocks, self.strides.block)], self.row_bytes)

    def _check_heads(self) -> None:
        if self.heads.stop > self.kv_heads:
            raise _refused(
                f"heads is {self.heads}, the model has kv_heads {self.kv_heads}",
                "give the heads that this rank holds, numbered over the whole model",
            )
        if self.interior == "opaque blocks" and len(self.heads) != 1:
            raise _refused(
                f"heads is {self.heads} with opaque blocks",
                "give the one shard that this rank holds, range(rank, rank + 1)",
            )

    def _check_interior(self) -> None:
        opaque = self.interior != "rows"
        if opaque is not bool(self.packing):
            raise _refused(
                f"packing is {self.packing!r} with interior {self.interior!r}",
                "name the packing of an opaque interior, and of no other",
            )
        if opaque and self.strides.token:
            raise _refused(
                f"strides.token is {self.strides.token} with interior {self.interior!r}",
                "leave it 0: tokens of an opaque interior cannot be told apart",
            )
        if self.data_type.itemsize * self.head_size > MAX_STRIDE:
            raise ValueError(f"head_size {self.head_size} makes rows above {MAX_STRIDE} bytes")

    def _check_strides(self) -> None:
        """Check the axes that lie inside a block; `check_blocks` checks those outside."""
        block = self.strides.block
        axes = list(self.axes())
        inside = [axis for axis in axes if axis.stride < block]
        outside = [axis for axis in axes if axis.stride >= block and axis.size > 1]
        if not block:
            raise _refused("strides.block is 0", "give the bytes from a block to the next")
        for axis in outside:
            if axis.name in {"token", "head"}:
                raise _refused(
                    f"strides.{axis.name} is {axis.stride}, strides.block {block}",
                    "tokens and heads must lie inside their block",
                )
        _check_nested([*inside, Axis("block", 1 << 62, block)], self.row_bytes)


def _check_span(name: str, value: object, most: int) -> None:
    span = check_range(name, value)
    if span.step != 1 or not 0 <= span.start < span.stop:
        raise _refused(f"{name} is {span}", "give a range of step 1, not empty, from 0 on")
    if span.stop > (1 << 16) or len(span) > most:
        raise ValueError(f"{name} must be at most {most} below {1 << 16}, got {span}")


def _check_nested(axes: list[Axis], row_bytes: int) -> None:
    """Refuse a stride below the bytes of what is inside of it, from the smallest stride on."""
    covered, inner = row_bytes, "row"
    for axis in sorted(axes, key=lambda axis: axis.stride):
        if axis.size == 1:
            continue
        if axis.stride < covered:
            raise _refused(
                f"strides.{axis.name} is {axis.stride} bytes, its {inner} has {covered}",
                "give strides in bytes, by which no two rows overlap",
            )
        covered += (axis.size - 1) * axis.stride
        inner = f"{axis.name} axis"


def _refused(problem: str, remedy: str) -> LLMException:
    return invalid(_OPERATION, problem, remedy)
