"""Keys (api.md 1, 5.3)."""

import copy
import pickle

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex

U64 = 2**64 - 1
FIELDS = {
    CacheKey: {"cluster_id": U64, "req_id": U64, "model_id": U64, "prefix_id": U64},
    BlocksCacheKey: {"cluster_id": U64, "model_id": U64},
    CacheKeyByIdAndIndex: {"cluster_id": U64, "cache_id": U64, "batch_index": 2**32 - 1},
}
EVERY_FIELD = [(kind, name) for kind, fields in FIELDS.items() for name in fields]


def make(kind, **changes):
    values = {name: place for place, name in enumerate(FIELDS[kind], start=1)}
    return kind(**values | changes)


@pytest.mark.parametrize("kind", FIELDS)
def test_a_key_is_made_by_position_or_by_keyword(kind):
    names = [*FIELDS[kind]]
    by_position = kind(*range(1, len(names) + 1))
    assert by_position == make(kind)
    assert [getattr(by_position, name) for name in names] == [*range(1, len(names) + 1)]


def test_what_is_left_out_has_the_documented_default():
    key = CacheKey(1, 2)
    assert (key.model_id, key.prefix_id) == (0, U64)
    assert BlocksCacheKey(1).model_id == 0
    assert CacheKeyByIdAndIndex(1, 2).batch_index == 0


@pytest.mark.parametrize("kind", [CacheKey, BlocksCacheKey])
def test_prompt_cluster_id_is_another_name_of_cluster_id(kind):
    other = {"req_id": 2} if kind is CacheKey else {}
    key = kind(prompt_cluster_id=9, **other)
    assert key == kind(cluster_id=9, **other)
    assert (key.cluster_id, key.prompt_cluster_id) == (9, 9)


def test_both_names_at_once_are_refused():
    with pytest.raises(LLMException, match="both given"):
        BlocksCacheKey(cluster_id=1, prompt_cluster_id=1)


@pytest.mark.parametrize(("kind", "name"), EVERY_FIELD)
def test_a_field_is_held_to_its_width(kind, name):
    """api.md checklist 5."""
    high = FIELDS[kind][name]
    for value in (0, high):
        assert getattr(make(kind, **{name: value}), name) == value
    for value in (-1, high + 1):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            make(kind, **{name: value})


@pytest.mark.parametrize(("kind", "name"), EVERY_FIELD)
@pytest.mark.parametrize("value", ["aa", None, 1.0, True, [1]])
def test_a_field_of_another_type_is_refused(kind, name, value):
    """api.md checklist 5."""
    with pytest.raises(TypeError, match=f"{name}.*only support"):
        make(kind, **{name: value})


def test_numpy_integers_are_integers():
    assert CacheKey(np.uint64(U64), np.int32(2)) == CacheKey(U64, 2)
    assert type(CacheKey(np.uint64(1), 2).cluster_id) is int


@pytest.mark.parametrize(
    ("make_key", "missing"),
    [
        (CacheKey, "cluster_id"),
        (lambda: CacheKey(req_id=1), "cluster_id"),
        (lambda: CacheKey(1), "req_id"),
        (lambda: CacheKey(prompt_cluster_id=1), "req_id"),
        (BlocksCacheKey, "cluster_id"),
        (lambda: BlocksCacheKey(model_id=1), "cluster_id"),
        (CacheKeyByIdAndIndex, "cluster_id"),
        (lambda: CacheKeyByIdAndIndex(1), "cache_id"),
    ],
)
def test_a_missing_field_is_named(make_key, missing):
    """api.md checklist 5."""
    with pytest.raises(LLMException, match=f"{missing} is required") as caught:
        make_key()
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize("kind", FIELDS)
def test_an_unknown_keyword_is_unsupported(kind):
    """api.md checklist 5."""
    with pytest.raises(LLMException, match="Unsupported keyword foo") as caught:
        make(kind, foo=1)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_a_key_by_id_has_no_other_name_for_cluster_id():
    with pytest.raises(LLMException, match="Unsupported"):
        CacheKeyByIdAndIndex(prompt_cluster_id=1, cache_id=1)


@pytest.mark.parametrize(("kind", "name"), EVERY_FIELD)
def test_keys_are_equal_by_value_in_every_field(kind, name):
    assert make(kind) == make(kind)
    assert hash(make(kind)) == hash(make(kind))
    assert make(kind) != make(kind, **{name: 77})
    assert {make(kind): "found"}[make(kind)] == "found"


def test_keys_of_different_kinds_are_never_equal():
    keys = [BlocksCacheKey(1, 2), CacheKeyByIdAndIndex(1, 2), CacheKey(1, 2), (1, 2), None]
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            assert one != other


@pytest.mark.parametrize(("kind", "name"), EVERY_FIELD)
def test_keys_cannot_be_changed(kind, name):
    with pytest.raises(AttributeError):
        setattr(make(kind), name, 1)


@pytest.mark.parametrize("kind", FIELDS)
def test_keys_can_be_copied_and_pickled(kind):
    key = make(kind)
    assert copy.deepcopy(key) == pickle.loads(pickle.dumps(key)) == key


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (BlocksCacheKey(1), "BlocksCacheKey(cluster_id=1, model_id=0)"),
        (CacheKey(1, 2, 3, 4), "CacheKey(cluster_id=1, req_id=2, model_id=3, prefix_id=4)"),
        (
            CacheKeyByIdAndIndex(1, 2, 3),
            "CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=3)",
        ),
    ],
)
def test_a_key_prints_its_fields(key, text):
    """api.md checklist 61."""
    assert (str(key), repr(key)) == (text, text)
