"""Whatever a peer fills has a width and a cap: every struct that is decoded from a peer's bytes."""

import msgspec
import pytest
from msgspec import inspect

from llm_datadist._backends.host import HostMetadata
from llm_datadist._engine.link import messages as engine_messages
from llm_datadist._engine.link.delegate import Endpoint
from llm_datadist._protocol import messages
from llm_datadist._protocol.codec import DECODE_ERRORS
from llm_datadist._registry import records

U64 = 2**64 - 1


def structs_of(module):
    """Return the structs that a module defines, so that a new one is held to the rule, too."""
    return [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, msgspec.Struct)
        and each.__module__ == module.__name__
        and each is not messages.Message
    ]


STRUCTS = [
    *structs_of(messages),
    *structs_of(engine_messages),
    *structs_of(records),
    Endpoint,
    HostMetadata,
]


def parts(kind):
    """Return the types of which a type consists, each with its place."""
    if isinstance(kind, inspect.DictType):
        return [("key", kind.key_type), ("value", kind.value_type)]
    if isinstance(kind, inspect.TupleType):
        return [(str(number), item) for number, item in enumerate(kind.item_types)]
    if isinstance(kind, inspect.UnionType):
        return [("", each) for each in kind.types]
    if isinstance(kind, inspect.StructType):
        return [(field.name, field.type) for field in kind.fields]
    return [("item", kind.item_type)] if hasattr(kind, "item_type") else []


def is_capped(kind):
    """Whether the values of a type, apart from its parts, have a limit."""
    if isinstance(kind, inspect.IntType):
        return kind.ge is not None or kind.gt is not None
    if hasattr(kind, "max_length"):
        return kind.max_length is not None
    plain = inspect.BoolType | inspect.NoneType | inspect.TupleType
    return isinstance(kind, plain | inspect.UnionType | inspect.StructType)


def uncapped(kind, where):
    """Yield the places of a type at which a peer could put what has no limit."""
    if not is_capped(kind):
        yield f"{where}: {kind!r}"
    for name, part in parts(kind):
        yield from uncapped(part, f"{where}.{name}")


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda each: f"{each.__module__}.{each.__name__}")
def test_every_field_has_a_width_and_a_cap(struct):
    """Numbers without an upper bound are those of 64 bits, which is what the encoding has."""
    assert list(uncapped(inspect.type_info(struct), struct.__name__)) == []


EXTREMES = [
    -1,
    -(2**63),
    2**31,
    2**32,
    2**63,
    U64,
    1e300,
    True,
    None,
    "x" * (1 << 20),
    b"x" * (2 << 20),
    [],
    [0] * (1 << 17),
    [[0, 0]] * (1 << 17),
    [[U64, U64]],
    {str(number): b"" for number in range(100)},
]


def bodies(struct):
    """Yield encodings of a struct in which one field after the other is extreme."""
    config = struct.__struct_config__
    names = struct.__struct_fields__
    for at in range(len(names)):
        for extreme in EXTREMES:
            values = [0] * len(names)
            values[at] = extreme
            if config.array_like:
                head = [] if config.tag is None else [config.tag]
                yield msgspec.msgpack.encode([*head, *values])
            else:
                head = {} if config.tag is None else {config.tag_field: config.tag}
                yield msgspec.msgpack.encode(head | dict(zip(names, values, strict=True)))


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda each: f"{each.__module__}.{each.__name__}")
def test_extreme_values_are_refused_in_one_way(struct):
    decoder = msgspec.msgpack.Decoder(struct)
    for body in bodies(struct):
        try:
            made = decoder.decode(body)
        except DECODE_ERRORS:
            continue
        assert len(msgspec.msgpack.encode(made)) <= messages.MAX_BODY_BYTES + 1024
