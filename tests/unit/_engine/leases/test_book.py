"""The book of leases, with a clock that is moved by hand."""

import numpy as np
import pytest

from llm_datadist._engine.leases import book as lease_book
from llm_datadist._engine.leases.book import BookFull, LeaseBook
from llm_datadist._types.lease import LeaseEnd


class Clock:
    def __init__(self):
        self.now_ns = 1000

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(clock):
    return LeaseBook(clock)


def blocks(*indices):
    return np.array(indices, np.uint32)


def end(cluster_id, cache_id, indices, reason):
    return LeaseEnd(cluster_id, cache_id, indices, reason)


def test_what_is_leased_is_the_union_of_all_leases(book):
    book.grant((1, 1), 7, 3, blocks(0, 2), 100)
    book.grant((1, 2), 7, 3, blocks(2, 5), 100)
    book.grant((2, 1), 8, 3, blocks(9), 100)
    book.grant((2, 2), 8, 4, blocks(1), 100)
    assert book.leased(3) == {0, 2, 5, 9}
    assert book.leased(4) == {1}
    assert book.leased(5) == frozenset()
    assert all(type(block) is int for block in book.leased(3))


def test_a_release_ends_one_lease_only(book):
    book.grant((1, 1), 7, 3, blocks(0, 2), 100)
    book.grant((1, 2), 7, 3, blocks(2, 5), 100)
    assert book.release((1, 1)) == [end(7, 3, (0, 2), "released")]
    assert book.leased(3) == {2, 5}
    assert book.release((1, 1)) == []
    assert book.release((2, 2)) == []  # another link's lease of that number


def test_a_lease_does_not_count_from_its_last_moment_on(book, clock):
    book.grant((1, 1), 7, 3, blocks(4), 100)
    clock.now_ns += 99
    assert book.leased(3) == {4}
    assert book.expire() == []
    clock.now_ns += 1
    assert book.leased(3) == frozenset()
    assert book.expire() == [end(7, 3, (4,), "expired")]
    assert book.expire() == []


def test_leases_expire_in_order(book, clock):
    for lease_id, ttl_ns in ((1, 300), (2, 100), (3, 200)):
        book.grant((1, lease_id), 7, 3, blocks(lease_id), ttl_ns)
    found = []
    while (due_ns := book.next_expiry_ns()) is not None:
        clock.now_ns = due_ns
        found += [ended.blocks for ended in book.expire()]
    assert found == [(2,), (3,), (1,)]


def test_a_renewal_counts_from_when_it_is_made(book, clock):
    book.grant((1, 1), 7, 3, blocks(4), 100)
    clock.now_ns += 60
    assert book.renew((1, 1), 100)
    clock.now_ns += 99
    assert book.expire() == []
    assert book.leased(3) == {4}
    clock.now_ns += 1
    assert not book.renew((1, 1), 100)
    assert book.expire() == [end(7, 3, (4,), "expired")]


def test_a_renewal_may_shorten(book, clock):
    book.grant((1, 1), 7, 3, blocks(4), 1000)
    assert book.renew((1, 1), 10)
    assert book.next_expiry_ns() == clock.now_ns + 10
    clock.now_ns += 10
    assert len(book.expire()) == 1
    clock.now_ns += 1000
    assert book.expire() == []


def test_what_is_over_cannot_be_renewed(book, clock):
    book.grant((1, 1), 7, 3, blocks(4), 100)
    book.release((1, 1))
    assert not book.renew((1, 1), 100)
    assert not book.renew((1, 2), 100)


def test_renewing_for_ever_keeps_the_book_small(book, clock):
    book.grant((1, 1), 7, 3, blocks(4), 1000)
    for _ in range(10_000):
        clock.now_ns += 1
        assert book.renew((1, 1), 1000)
    assert len(book._expiries) < 200
    clock.now_ns += 1000
    assert len(book.expire()) == 1
    assert book.next_expiry_ns() is None


def test_a_link_takes_its_leases_with_it(book, clock):
    book.grant((1, 1), 7, 3, blocks(0), 100)
    book.grant((1, 2), 7, 4, blocks(1), 100)
    book.grant((2, 1), 8, 3, blocks(2), 100)
    ended = book.end_link(1)
    assert sorted(ended, key=lambda one: one.cache_id) == [
        end(7, 3, (0,), "peer lost"),
        end(7, 4, (1,), "peer lost"),
    ]
    assert book.leased(3) == {2}
    assert book.end_link(1) == []
    clock.now_ns += 100
    assert book.expire() == [end(8, 3, (2,), "expired")]


def test_a_cache_takes_its_leases_with_it(book):
    book.grant((1, 1), 7, 3, blocks(0), 100)
    book.grant((1, 2), 7, 4, blocks(1), 100)
    assert book.end_cache(3) == [end(7, 3, (0,), "cache gone")]
    assert book.end_cache(3) == []
    assert book.leased(4) == {1}


def test_what_had_expired_unnoticed_says_so(book, clock):
    for lease_id, cache_id in ((1, 3), (2, 4), (3, 5)):
        book.grant((lease_id, 1), 7, cache_id, blocks(0), 100)
    clock.now_ns += 100
    for ended in (book.release((1, 1)), book.end_link(2), book.end_cache(5)):
        assert [one.reason for one in ended] == ["expired"]


def test_a_number_is_used_once(book):
    book.grant((1, 1), 7, 3, blocks(0), 100)
    with pytest.raises(ValueError, match="1 already"):
        book.grant((1, 1), 7, 4, blocks(0), 100)
    assert book.leased(4) == frozenset()
    book.release((1, 1))
    assert book._entries == book._by_link == book._by_cache == book._num_blocks == {}


def test_a_link_can_only_have_so_many(book, monkeypatch):
    monkeypatch.setattr(lease_book, "MOST_LEASES", 3)
    monkeypatch.setattr(lease_book, "MOST_BLOCKS", 10)
    book.grant((1, 1), 7, 3, blocks(*range(9)), 100)
    with pytest.raises(BookFull):
        book.grant((1, 2), 7, 3, blocks(1, 2), 100)
    book.grant((1, 2), 7, 3, blocks(1), 100)
    book.grant((1, 3), 7, 3, blocks(), 100)
    with pytest.raises(BookFull):
        book.grant((1, 4), 7, 3, blocks(), 100)
    book.grant((2, 1), 8, 3, blocks(1, 2), 100)  # another link
    book.release((1, 1))
    book.grant((1, 5), 7, 3, blocks(*range(9)), 100)


def test_leases_and_their_blocks_are_counted(book):
    assert book.num_lent() == (0, 0)
    book.grant((1, 1), 7, 3, blocks(0, 2), 100)
    book.grant((2, 1), 8, 3, blocks(2), 100)
    assert book.num_lent() == (2, 3)
    book.release((1, 1))
    assert book.num_lent() == (1, 1)
