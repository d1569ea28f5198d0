"""Engine messages over a link."""

from __future__ import annotations

import threading
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode


@pytest.fixture
def pair(end):
    a, b = end(1), end(2)
    a.link(b)
    return a, b


@pytest.mark.parametrize("direction", ["with the dial", "against it"])
def test_a_request_is_answered_in_either_direction(pair, direction):
    one, other = pair if direction == "with the dial" else pair[::-1]
    asked = []

    def answer(link, body):
        asked.append(link)
        return body[::-1]

    other.table.hooks.on_request = answer
    (link,) = one.table.links()
    assert one.table.request(link, b"abc", 2000) == b"cba"
    assert asked == other.table.links()


def test_large_messages_and_larger_ones(pair):
    a, b = pair
    b.table.hooks.on_request = lambda link, body: body
    link = a.table.get(2)
    body = bytes(1_000_000)
    assert a.table.request(link, body, 5000) == body
    with pytest.raises(ValueError, match="1048576"):
        a.table.request(link, bytes(1 << 20), 1000)
    with pytest.raises(ValueError, match="1048576"):
        a.table.notify(link, bytes(1 << 20))
    a.table.check(2, 1000)


@pytest.mark.expects_log("message of cluster 1 failed")
def test_what_the_peers_hook_raises_comes_back_as_text(pair):
    a, b = pair

    def refuse(link, body):
        raise KeyError("no such range")

    b.table.hooks.on_request = refuse
    with pytest.raises(LLMException, match="no such range") as raised:
        a.table.request(a.table.get(2), b"", 2000)
    assert raised.value.status_code is LLMStatusCode.LLM_FAILED
    a.table.check(2, 1000)


def test_an_answer_that_is_too_large_is_an_error_and_the_link_stays(pair):
    a, b = pair
    b.table.hooks.on_request = lambda link, body: bytes(2 << 20)
    with pytest.raises(LLMException, match="at most"):
        a.table.request(a.table.get(2), b"", 2000)
    a.table.check(2, 1000)


def test_without_a_hook(pair):
    a, _ = pair
    with pytest.raises(LLMException, match="answers no requests"):
        a.table.request(a.table.get(2), b"", 2000)
    a.table.notify(a.table.get(2), b"")


def test_an_answer_that_does_not_come(pair):
    a, b = pair
    release = threading.Event()
    b.table.hooks.on_request = lambda link, body: release.wait(10) and b"late"
    with pytest.raises(LLMException, match="100 ms") as raised:
        a.table.request(a.table.get(2), b"", 100)
    assert raised.value.status_code is LLMStatusCode.LLM_TIMEOUT
    a.table.check(2, 1000)  # pings are answered meanwhile
    release.set()
    assert a.table.request(a.table.get(2), b"", 2000) == b"late"


def test_messages_of_a_link_come_in_order(pair):
    a, b = pair
    received, done = [], threading.Event()

    def take(link, body):
        received.append(int(body))
        if int(body) == 299:
            done.set()

    b.table.hooks.on_notify = take
    b.table.hooks.on_request = lambda link, body: str(len(received)).encode()
    link = a.table.get(2)
    for number in range(300):
        a.table.notify(link, str(number).encode())
    assert int(a.table.request(link, b"", 5000)) == 300
    assert done.wait(5)
    assert received == list(range(300))


def test_a_flood_is_held_back_and_nothing_is_lost(pair):
    a, b = pair
    gate, seen = threading.Event(), []
    b.table.hooks.on_notify = lambda link, body: gate.wait(10) and seen.append(len(body))
    b.table.hooks.on_request = lambda link, body: b"done"
    link = a.table.get(2)
    for _ in range(200):
        a.table.notify(link, bytes(20_000))
    gate.set()
    a.table.request(link, b"", 10_000)
    assert seen == [20_000] * 200


def test_request_all_reports_who_failed(end, child):
    a, b, c = end(1), end(2), child(3, mode="mute")
    a.link(b, c)
    b.table.hooks.on_request = lambda link, body: b""
    failed = []
    began = time.monotonic()
    a.table.request_all(
        a.table.links(),
        b"x",
        time.monotonic_ns() + 200_000_000,
        lambda link, error: failed.append((link.cluster_id, error.status_code)),
    )
    assert failed == [(3, LLMStatusCode.LLM_TIMEOUT)]
    assert time.monotonic() - began < 1


def test_messages_on_a_link_that_is_gone(pair):
    a, _ = pair
    link = a.table.get(2)
    a.unlink(2)
    for call in (
        lambda: a.table.request(link, b"", 1000),
        lambda: a.table.notify(link, b""),
    ):
        with pytest.raises(LLMException) as raised:
            call()
        assert raised.value.status_code is LLMStatusCode.LLM_LINK_FAILED
