"""Byte form of layouts, which a directory carries, and their JSON form.

Every number has a cap, and what is decoded is checked as a layout made by hand.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from llm_datadist._errors import LLMException, invalid
from llm_datadist._plan.layouts.kv_layout import (
    INTERIORS,
    MAX_BLOCK_TOKENS,
    MAX_HEAD_SIZE,
    MAX_HEADS,
    MAX_PACKING,
    MAX_PLANES,
    MAX_STRIDE,
    KvLayout,
    Strides,
)
from llm_datadist._types import DataType
from llm_datadist._types.checks import check_instance

__all__ = ["MAX_LAYOUT_BYTES", "from_bytes", "from_json", "to_bytes", "to_json"]

MAX_LAYOUT_BYTES = 512
_MAX_JSON = 2048

Stride: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_STRIDE)]
Place: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
Span: TypeAlias = tuple[Place, Place]


class _Fields(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A layout as numbers and one text."""

    layers: Span
    kv_heads: Annotated[int, msgspec.Meta(ge=1, le=MAX_HEADS)]
    heads: Span
    head_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_HEAD_SIZE)]
    data_type: Annotated[int, msgspec.Meta(ge=0, le=255)]
    block_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_TOKENS)]
    strides: tuple[Stride, Stride, Stride, Stride, Stride]
    planes: Annotated[int, msgspec.Meta(ge=1, le=MAX_PLANES)]
    interior: Annotated[int, msgspec.Meta(ge=0, lt=len(INTERIORS))]
    packing: Annotated[str, msgspec.Meta(max_length=MAX_PACKING)]


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Fields).decode
_print = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder(_Fields).decode

#: What decoders raise, UnicodeDecodeError and RecursionError included.
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


def to_bytes(layout: KvLayout) -> bytes:
    """Return the byte form of a layout *(extension)*, at most 512 bytes.

    Raises:
        TypeError: Not a KvLayout.
    """
    return _pack(_fields(layout))


def to_json(layout: KvLayout) -> str:
    """Return the same as a line of JSON *(extension)*.

    Raises:
        TypeError: Not a KvLayout.
    """
    return _print(_fields(layout)).decode()


def from_bytes(data: bytes) -> KvLayout:
    """Return the layout of a byte form *(extension)*; the bytes may come from anywhere.

    Args:
        data: As `to_bytes` returns it.

    Raises:
        TypeError: Not bytes.
        LLMException: LLM_PARAM_INVALID: the bytes are no layout, or its numbers are too large or do
            not fit together. The text says what is wrong.
    """
    check_instance("data", data, bytes)
    if len(data) > MAX_LAYOUT_BYTES:
        raise _malformed(f"{len(data)} bytes; {MAX_LAYOUT_BYTES} are the most")
    try:
        return _layout(_unpack(data))
    except _DECODE_ERRORS as error:
        raise _malformed(str(error)) from error


def from_json(text: str) -> KvLayout:
    """Return the layout of a line of JSON *(extension)*; raises as `from_bytes`."""
    check_instance("text", text, str)
    if len(text) > _MAX_JSON:
        raise _malformed(f"{len(text)} characters; {_MAX_JSON} are the most")
    try:
        return _layout(_parse(text))
    except _DECODE_ERRORS as error:
        raise _malformed(str(error)) from error


def _fields(layout: KvLayout) -> _Fields:
    check_instance("layout", layout, KvLayout)
    return _Fields(
        layers=(layout.layers.start, layout.layers.stop),
        kv_heads=layout.kv_heads,
        heads=(layout.heads.start, layout.heads.stop),
        head_size=layout.head_size,
        data_type=layout.data_type.value,
        block_tokens=layout.block_tokens,
        strides=layout.strides,
        planes=layout.planes,
        interior=INTERIORS.index(layout.interior),
        packing=layout.packing,
    )


def _layout(fields: _Fields) -> KvLayout:
    return KvLayout(
        layers=range(*fields.layers),
        kv_heads=fields.kv_heads,
        heads=range(*fields.heads),
        head_size=fields.head_size,
        data_type=DataType(fields.data_type),
        block_tokens=fields.block_tokens,
        strides=Strides(*fields.strides),
        planes=fields.planes,
        interior=INTERIORS[fields.interior],
        packing=fields.packing,
    )


def _malformed(problem: str) -> LLMException:
    return invalid(
        "KvLayout", f"this is no layout: {problem}", "send what to_bytes or to_json gives"
    )
