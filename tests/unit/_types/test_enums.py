"""Enumerations (api.md 2, checklist 2 and 61)."""

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import DataType, LLMRole, Memtype, Placement, RegisterMemStatus

DATA_TYPES = {
    "DT_FLOAT": (0, 4),
    "DT_FLOAT16": (1, 2),
    "DT_INT8": (2, 1),
    "DT_INT32": (3, 4),
    "DT_UINT8": (4, 1),
    "DT_INT16": (6, 2),
    "DT_UINT16": (7, 2),
    "DT_UINT32": (8, 4),
    "DT_INT64": (9, 8),
    "DT_UINT64": (10, 8),
    "DT_DOUBLE": (11, 8),
    "DT_BOOL": (12, 1),
    "DT_STRING": (13, None),
    "DT_BF16": (27, 2),
}


@pytest.mark.parametrize(
    ("enumeration", "members"),
    [
        (LLMRole, {"PROMPT": 1, "DECODER": 2, "MIX": 3}),
        (Placement, {"HOST": 0, "DEVICE": 1}),
        (Memtype, {"MEM_TYPE_DEVICE": 0, "MEM_TYPE_HOST": 1}),
        (RegisterMemStatus, {"OK": 0, "PREPARING": 1, "FAILED": 2}),
        (DataType, {name: number for name, (number, _) in DATA_TYPES.items()}),
    ],
)
def test_members_have_the_documented_numbers(enumeration, members):
    assert {name: member.value for name, member in enumeration.__members__.items()} == members


def test_roles_and_placements_are_integers_and_the_others_are_not():
    assert LLMRole.PROMPT == 1
    assert Placement.DEVICE == 1
    assert Memtype.MEM_TYPE_HOST != 1
    assert RegisterMemStatus.OK != 0
    assert DataType.DT_FLOAT != 0


@pytest.mark.parametrize(
    ("role", "text"),
    [(LLMRole.PROMPT, "Prompt"), (LLMRole.DECODER, "Decoder"), (LLMRole.MIX, "Mix")],
)
def test_a_role_prints_as_a_word(role, text):
    assert (str(role), f"{role}", "%s" % role) == (text,) * 3  # noqa: UP031
    assert f"{role:d}" == str(int(role))


@pytest.mark.parametrize("member", [*Placement, *Memtype, *RegisterMemStatus, *DataType])
def test_the_others_print_with_their_class(member):
    text = f"{type(member).__name__}.{member.name}"
    assert (str(member), f"{member}") == (text, text)


def test_data_types_are_hashable_and_unique():
    assert len({*DataType}) == len(DATA_TYPES)


@pytest.mark.parametrize(
    ("name", "size"), [(n, size) for n, (_, size) in DATA_TYPES.items() if size]
)
def test_a_data_type_knows_the_bytes_of_an_element(name, size):
    """api.md checklist 32."""
    assert DataType[name].itemsize == size


def test_strings_have_no_element_size():
    """api.md checklist 32."""
    with pytest.raises(LLMException, match="DT_STRING") as caught:
        _ = DataType.DT_STRING.itemsize
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
