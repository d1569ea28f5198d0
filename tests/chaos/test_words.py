"""The judge of a chaos run finds what is wrong with bytes, and nothing wrong with right ones."""

import numpy as np
import pytest
from chaos.caches import BIG, PLACES
from chaos.judge import Links, Situation, check_source, check_status
from chaos.words import tag, told

QUIET = (0, 0, 0, 0, 2, 2, 0)
BEFORE = Situation(QUIET, 4, 0, 7, 6, 1)
PLACES_OF = PLACES[BIG.name]


def content(generation, name=BIG.name, slot=2):
    return tag(slot, name, generation) + PLACES_OF


def judged(data, before=BEFORE, after=BEFORE):
    return check_source(data, PLACES_OF, 2, BIG.name, before, after)


def test_a_word_tells_where_it_is_from():
    word = content(77)[3, 15, 4095]
    assert told(word) == (2, BIG.name, 77, 3, 15, 4095)


def test_the_bytes_of_the_generation_that_is_registered():
    assert judged(content(7)) == ""


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (content(6), "stale"),
        (content(9), "before they were begun"),
        (content(7, name=1), "another cache"),
        (content(7, slot=3), "another cache"),
        (content(7)[:, ::-1], "torn"),
        (np.full_like(PLACES_OF, 2**64 - 1), "torn"),
        (np.zeros_like(PLACES_OF), "torn"),
    ],
)
def test_other_bytes(data, word):
    assert word in judged(data)


def test_one_word_of_another_generation():
    data = content(7)
    data[1, 5, 100] = content(8)[1, 5, 100]
    after = BEFORE._replace(begun=8)
    assert "torn" in judged(data, after=after)
    # Unless the owner was replacing the pages: then the bytes changed under the reader's eyes.
    assert judged(data, after=after._replace(remapping=2)) == ""
    data[0, 0, 0] = content(6)[0, 0, 0]
    assert "stale" in judged(data, after=after._replace(remapping=2))


@pytest.mark.parametrize("status", ["LLM_KV_CACHE_NOT_EXIST", "LLM_SUSPECT_REMOTE_ERROR"])
def test_statuses_that_need_a_reason(status):
    assert check_status(status, BEFORE, BEFORE, Links(), 2)
    changing = BEFORE._replace(change=5)
    assert not check_status(status, BEFORE, changing, Links(), 2)
    assert not check_status(status, changing, changing, Links(), 2)
    killed = BEFORE._replace(circumstances=(0, 1, 0, 0, 2, 2, 0))
    assert not check_status(status, BEFORE, killed, Links(), 2)


def test_statuses_that_are_always_wrong():
    for status in ("LLM_FAILED", "LLM_UNKNOWN_ERROR", "LLM_DEVICE_MEM_ERROR", "LLM_LINK_BUSY"):
        assert check_status(status, BEFORE, BEFORE._replace(change=6), Links(), 2)


def test_a_link_that_ends_by_itself(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("chaos.judge.time.monotonic", lambda: clock[0])
    links = Links()
    assert not check_status("LLM_LINK_FAILED", BEFORE, BEFORE, links, 2)  # never worked
    links.worked(2, BEFORE, BEFORE)
    assert not check_status("LLM_LINK_FAILED", BEFORE, BEFORE, links, 2)  # only just now
    clock[0] += 10
    assert check_status("LLM_LINK_FAILED", BEFORE, BEFORE, links, 2)
    unlinked = BEFORE._replace(circumstances=(0, 0, 0, 0, 4, 2, 0))
    assert not check_status("LLM_LINK_FAILED", BEFORE, unlinked, links, 2)
    assert not check_status("LLM_LINK_FAILED", unlinked, unlinked, links, 2)
