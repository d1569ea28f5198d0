"""What is said of a key that names no cache."""

from __future__ import annotations

import pytest

from llm_datadist._registry.endings import Endings, absent, consumed
from llm_datadist._registry.records import CONSUMED, DEALLOCATED, REMOVED, UNREGISTERED
from llm_datadist._types import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llm_datadist._types.keys import UNUSED

KEY, BLOCKS, ID = CacheKey(2, 5), BlocksCacheKey(2, 3), CacheKeyByIdAndIndex(2, 4)
NAMES = {KEY: ("key", (5, 0, UNUSED)), BLOCKS: ("blocks", 3), ID: ("id", 4)}


@pytest.mark.parametrize(
    ("key", "reason", "why"),
    [
        (KEY, CONSUMED, "a pull has consumed it"),
        (KEY, REMOVED, "its owner has removed it"),
        (KEY, UNREGISTERED, "its cache was unregistered"),
        (BLOCKS, DEALLOCATED, "its cache was deallocated"),
        (ID, UNREGISTERED, "it was unregistered"),
        (ID, DEALLOCATED, "it was deallocated"),
    ],
)
def test_a_name_that_has_ended_says_why(key, reason, why):
    endings = Endings()
    endings.add(NAMES[key], reason)
    problem = f"the peer has no cache under {key} any more: {why}"
    assert absent(key, endings, [])[0] == problem
    endings.forget(NAMES[key])
    assert "any more" not in absent(key, endings, [])[0]


def test_a_consumed_key_reads_the_same_before_its_owner_has_noticed():
    endings = Endings()
    endings.add(NAMES[KEY], CONSUMED)
    assert absent(KEY, endings, []) == consumed(KEY)


@pytest.mark.parametrize(
    ("key", "known", "text"),
    [
        (BLOCKS, [7, 1], "it has BlocksCacheKeys with model_id 1, 7"),
        (BLOCKS, [], "it has no BlocksCacheKeys"),
        (ID, [2], "it has caches 2"),
        (ID, [], "it has no caches"),
        (
            KEY,
            [(9, 0, UNUSED), (4, 2, UNUSED), (6, 0, 8)],
            "it has CacheKeys with req_id 4 (model_id 2), 6 (prefix_id 8), 9",
        ),
        (ID, range(1, 100), "it has caches 1, 2, 3, 4, 5, 6, 7, 8 and 91 more"),
    ],
)
def test_a_name_that_never_was_comes_with_a_few_that_are(key, known, text):
    problem, _ = absent(key, Endings(), known)
    assert problem.startswith(f"the peer has no cache under {key}; {text}")


def test_a_number_of_a_later_version_says_nothing():
    endings = Endings()
    endings.add(NAMES[ID], 200)
    assert "it has caches 1" in absent(ID, endings, [1])[0]


def test_the_last_thousand_are_remembered():
    endings = Endings()
    for number in range(2000):
        endings.add(("id", number), UNREGISTERED)
    remembered = [number for number in range(2000) if endings.why(("id", number))]
    assert remembered == list(range(2000 - 1024, 2000))
