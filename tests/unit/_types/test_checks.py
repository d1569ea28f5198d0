"""Argument checks (api.md 1.1, checklist 5)."""

import math

import numpy as np
import pytest

from llm_datadist._types import checks


class Index:
    """Anything with __index__ is an integer."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class Number(int):
    """A sub-class of int comes out as plain int."""


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), Index(3), Number(3)])
def test_an_integer_is_anything_with_index(value):
    result = checks.check_int("x", value)
    assert result == 3
    assert type(result) is int
    assert checks.check_list_of_ints("x", [value]) == [3]
    assert {type(n) for n in checks.check_list_of_ints("x", (value, 1))} == {int}


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, [1], np.True_, np.float32(1)])
def test_other_types_are_no_integers(value):
    with pytest.raises(TypeError, match="x must be int, got"):
        checks.check_int("x", value)
    with pytest.raises(TypeError, match=r"x\[1\] must be int, got"):
        checks.check_list_of_ints("x", [0, value])


def test_a_type_error_shows_the_type_and_the_value():
    with pytest.raises(TypeError, match=r"^n must be int, got str \('a'\)$"):
        checks.check_int("n", "a")
    with pytest.raises(TypeError, match=r"^n must be int, got None$"):
        checks.check_int("n", None)
    with pytest.raises(TypeError) as caught:
        checks.check_int("n", "a" * 1000)
    assert len(str(caught.value)) < 120


def test_a_text_names_no_infinite_bound():
    with pytest.raises(ValueError, match=r"^x must be at most 5, got 6$"):
        checks.check_int("x", 6, -math.inf, 5)


@pytest.mark.parametrize(
    ("check", "low", "high"),
    [
        (checks.check_uint32, 0, 2**32 - 1),
        (checks.check_uint64, 0, 2**64 - 1),
        (checks.check_int, 0, 2**64 - 1),
        (lambda name, value: checks.check_int(name, value, -5, 5), -5, 5),
    ],
)
def test_an_integer_is_held_to_its_width(check, low, high):
    assert (check("x", low), check("x", high)) == (low, high)
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=rf"x must be in \[{low}, {high}\], got {value}"):
            check("x", value)


@pytest.mark.parametrize("value", [[], (), [1, 2], (1, 2)])
def test_a_list_of_ints_is_a_new_list(value):
    result = checks.check_list_of_ints("x", value)
    assert result == list(value)
    assert type(result) is list
    assert result is not value


@pytest.mark.parametrize("value", [None, 1, "12", {1}, {1: 2}, range(2), np.arange(2), iter([1])])
def test_a_list_of_ints_is_a_list_or_tuple(value):
    with pytest.raises(TypeError, match="x must be list or tuple of int"):
        checks.check_list_of_ints("x", value)


def test_a_list_of_ints_names_the_first_element_out_of_range():
    with pytest.raises(ValueError, match=r"x\[2\] must be in \[0, 9\], got 10"):
        checks.check_list_of_ints("x", [0, 9, 10, -1], 0, 9)


def test_str_bool_and_range_are_checked_without_conversion():
    assert checks.check_str("x", "a") == "a"
    assert checks.check_bool("x", False) is False
    assert checks.check_range("x", range(3)) == range(3)
    with pytest.raises(TypeError, match="x must be str, got bytes"):
        checks.check_str("x", b"a")
    for value in (0, 1, None, "1", np.True_):
        with pytest.raises(TypeError, match="x must be bool, got"):
            checks.check_bool("x", value)
    with pytest.raises(TypeError, match="x must be range, got list"):
        checks.check_range("x", [0, 1])


def test_an_instance_is_one_of_the_types_named():
    assert checks.check_instance("x", 1, int, str) == 1
    with pytest.raises(TypeError, match="x must be int or str, got float"):
        checks.check_instance("x", 1.5, int, str)
