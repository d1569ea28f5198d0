"""The reader's side of leases, without links: what is asked, what answers mean."""

from types import SimpleNamespace

import msgspec
import pytest

from llm_datadist import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, LLMException
from llm_datadist._engine.leases import borrower
from llm_datadist._engine.leases.borrower import Borrower
from llm_datadist._engine.link.messages import (
    MAX_LEASED_BLOCKS,
    Granted,
    Lend,
    Refused,
    Release,
    Renew,
    encode,
)
from llm_datadist._errors import LLMStatusCode, fail

S = LLMStatusCode
KEY = BlocksCacheKey(2, 9)
LONG_MS = 60_000


class Links:
    """A link table with one link, whose peer gives the answers that are set."""

    def __init__(self):
        self.link = SimpleNamespace(cluster_id=2, alive=True)
        self.answers = []
        self.asked = []
        self.notified = []
        self.now_ns = self.answer_ns = 0

    def get(self, cluster_id, operation):
        return self.link

    def request(self, link, body, timeout_ms, operation):
        self.asked.append(msgspec.msgpack.decode(body, type=Lend | Renew))
        self.now_ns += self.answer_ns
        answer = self.answers.pop(0) if self.answers else Granted()
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else encode(answer)

    def notify(self, link, body):
        if not link.alive:
            raise fail(S.LLM_LINK_FAILED, "notify", "gone", "link again")
        self.notified.append(msgspec.msgpack.decode(body, type=Release))


class Reader:
    def __init__(self):
        self.links = Links()
        self.config = SimpleNamespace(sync_timeout_ms=300)
        self.borrower = Borrower(self)

    def fails(self, status, call, *arguments, text=None):
        with pytest.raises(LLMException, match=text) as raised:
            call(*arguments)
        assert raised.value.status_code is status


@pytest.fixture
def reader():
    return Reader()


@pytest.mark.parametrize(
    ("key", "numbers"),
    [
        (KEY, (9,)),
        (CacheKeyByIdAndIndex(2, 4, 5), (4, 5)),
        (CacheKey(2, 6, 7, 8), (6, 7, 8)),
    ],
)
def test_what_is_asked(reader, key, numbers):
    lease = reader.borrower.lease(key, [5, 1, 1], LONG_MS)
    assert reader.links.asked == [Lend(1, numbers, b"\5\0\0\0\1\0\0\0\1\0\0\0", LONG_MS)]
    assert (lease.cluster_id, lease.cache_key, lease.blocks) == (2, key, (5, 1, 1))
    assert reader.borrower.lease(key, None, LONG_MS).blocks is None
    assert reader.links.asked[1] == Lend(2, numbers, None, LONG_MS)


def test_it_lasts_until_the_release(reader):
    with reader.borrower.lease(KEY, [1, 2], LONG_MS) as lease:
        assert lease.active
        assert repr(lease) == (
            f"Lease(cluster_id=2, cache_key={KEY!r}, blocks=(1, 2), active=True)"
        )
    assert not lease.active
    lease.release()
    assert reader.links.notified == [Release(1)]
    reader.fails(S.LLM_PARAM_INVALID, lease.renew, text="released")


def test_it_is_over_with_its_time_or_its_link(reader):
    lease = reader.borrower.lease(KEY, None, LONG_MS)
    lease.renew(50)
    assert reader.links.asked[-1] == Renew(1, 50)
    lease.renew()
    assert reader.links.asked[-1] == Renew(1, 50)
    lease._expires_ns = 0
    assert not lease.active
    lease.renew(LONG_MS)
    assert lease.active
    reader.links.link.alive = False
    assert not lease.active
    lease.release()  # nothing is raised


def test_wrong_times_are_refused(reader):
    lease = reader.borrower.lease(KEY, None, LONG_MS)
    for call in (lease.renew, lambda ttl: reader.borrower.lease(KEY, None, ttl)):
        for wrong, raised in (("1", TypeError), (True, TypeError), (-1, ValueError)):
            with pytest.raises(raised, match="ttl_ms"):
                call(wrong)
        reader.fails(S.LLM_PARAM_INVALID, call, 0, text="ttl_ms is 0")
    assert len(reader.links.asked) == 1


def test_wrong_blocks_are_refused(reader):
    lease = reader.borrower.lease
    with pytest.raises(ValueError, match="got 4294967296"):
        lease(KEY, [2**32], LONG_MS)
    many = range(MAX_LEASED_BLOCKS + 1)
    reader.fails(S.LLM_PARAM_INVALID, lease, KEY, list(many), LONG_MS, text="200001")
    assert reader.links.asked == []


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (S.LLM_KV_CACHE_NOT_EXIST, S.LLM_KV_CACHE_NOT_EXIST),
        (S.LLM_OUT_OF_MEMORY, S.LLM_OUT_OF_MEMORY),
        (S.LLM_ENGINE_FINALIZED, S.LLM_FAILED),
    ],
)
def test_a_refusal_is_raised(reader, status, raised):
    """With a status that a refusal may have; a peer cannot make it another."""
    reader.links.answers = [Refused(int(status), "it cannot be", "do without")]
    reader.fails(raised, reader.borrower.lease, KEY, None, LONG_MS, text="cannot be; do without")
    assert reader.links.notified == []


def test_an_answer_that_is_none(reader):
    reader.links.answers = [b"\xc1"]
    reader.fails(S.LLM_FAILED, reader.borrower.lease, KEY, None, LONG_MS, text="cannot be read")


def test_a_lease_given_up_on_is_given_back(reader):
    """It may be granted yet."""
    reader.links.answers = [fail(S.LLM_TIMEOUT, "lease", "slow", "wait")]
    reader.fails(S.LLM_TIMEOUT, reader.borrower.lease, KEY, None, LONG_MS)
    assert reader.links.notified == [Release(1)]


@pytest.mark.parametrize("renewed", [False, True])
def test_it_ends_before_the_owners_however_late_the_answer_comes(reader, monkeypatch, renewed):
    """The owner counts from when it has received the request."""
    links = reader.links
    clock = SimpleNamespace(monotonic_ns=lambda: links.now_ns)
    monkeypatch.setattr(borrower, "time", clock)
    links.answer_ns = 40_000_000
    lease = reader.borrower.lease(KEY, None, 50)
    if renewed:
        lease.renew()
    links.now_ns += 9_000_000
    assert lease.active
    links.now_ns += 1_000_000
    assert not lease.active


def test_active_leases_are_counted_while_the_program_refers_to_them(reader):
    borrower = reader.borrower
    first, second, third = (borrower.lease(KEY, None, LONG_MS) for _ in range(3))
    assert borrower.num_held() == 3
    first.release()
    second._expires_ns = 0
    assert borrower.num_held() == 1
    del third
    assert borrower.num_held() == 0
    assert len(borrower._leases) == 2
