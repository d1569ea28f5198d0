"""`llm-datadist inspect`: the facts of the link, and the caches that the peer has now."""

import io
import json
import signal

import numpy as np
import pytest
from rich.console import Console

from llm_datadist import BlocksCacheKey, CacheDesc, CacheKey, DataType, LLMRole
from llm_datadist.cli.inspect_view import view


@pytest.fixture
def owner(peer):
    """A peer with two caches; also its address."""
    instance, address = peer(mem_pool_cfg='{"memory_size": 1048576}')
    manager = instance.cache_manager
    manager.register_tensors([np.zeros((8, 32), np.float32)], BlocksCacheKey(1, 7))
    manager.allocate_cache(
        CacheDesc(1, [8, 16], DataType.DT_INT8), [CacheKey(1, n) for n in range(5)]
    )
    return instance, address


def test_link_and_caches(invoke, owner):
    _, address = owner
    outcome = invoke("inspect", address)
    assert outcome.exit_code == 0
    text = " ".join(outcome.output.split())
    assert f"peer {address}" in text
    assert "state LINKED" in text
    assert "2 caches" in text
    assert "blocks 1 8x32 FLOAT" in text
    assert "model 7" in text
    assert "req 0, req 1, req 2 and 2 more" in " ".join(text.split())


def test_json_has_everything(invoke, owner):
    _, address = owner
    found = json.loads(invoke("inspect", address, "--json").output)
    assert found["link"]["cluster_id"] == 1
    assert [cache["kind"] for cache in found["caches"]] == ["blocks", "contiguous"]
    assert len(found["caches"][1]["keys"]) == 5


def test_a_peer_without_caches(invoke, peer):
    _, address = peer()
    assert "the peer has no caches" in invoke("inspect", address).output


def test_a_peer_of_the_first_generation(invoke, peer):
    _, address = peer(enable_cache_manager=False, role=LLMRole.PROMPT)
    outcome = invoke("inspect", address, "--first-generation")
    assert outcome.exit_code == 0
    assert "the peer has no caches" in outcome.output


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:70000", "no-such-host.invalid:1"])
def test_no_peer(invoke, address):
    outcome = invoke("inspect", address, "--watch")
    assert outcome.exit_code == 1
    assert outcome.output.strip()


def test_watch_shows_what_changes_until_the_link_ends(invoke, owner, monkeypatch):
    """Between two looks the owner does the next step."""
    instance, address = owner
    manager = instance.cache_manager
    steps = iter(
        [lambda: manager.unregister_cache(manager.caches()[0].cache_id), instance.finalize]
    )
    monkeypatch.setattr("llm_datadist.cli.inspect_command.sleep", lambda _: next(steps)())
    outcome = invoke("inspect", address, "--watch", "--json")
    looks = [json.loads(line) for line in outcome.output.splitlines() if line.startswith("{")]
    assert [len(look["caches"]) for look in looks] == [2, 1]
    assert outcome.exit_code == 1
    assert "failed" in outcome.output


def test_an_interrupt_ends_watch_well(invoke, owner, monkeypatch):
    _, address = owner

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_datadist.cli.inspect_command.sleep", interrupted)
    for more in ([], ["--json"]):
        assert invoke("inspect", address, "--watch", *more).exit_code == 0


def test_sigterm_ends_watch_well_and_later_does_what_it_did(invoke, owner, monkeypatch):
    """The background of a shell ignores SIGINT from the start."""
    _, address = owner
    sleep = "llm_datadist.cli.inspect_command.sleep"
    monkeypatch.setattr(sleep, lambda _: signal.raise_signal(signal.SIGTERM))

    def unexpected(*_):
        raise AssertionError("SIGTERM was not taken")

    before = signal.signal(signal.SIGTERM, unexpected)
    try:
        assert invoke("inspect", address, "--watch", "--json").exit_code == 0
        assert signal.getsignal(signal.SIGTERM) is unexpected
    finally:
        signal.signal(signal.SIGTERM, before)


def test_very_many_caches_are_counted(invoke, owner):
    _, address = owner
    look = json.loads(invoke("inspect", address, "--json").output)
    look["caches"] *= 50
    console = Console(width=200, file=io.StringIO())
    console.print(view(look))
    text = console.file.getvalue()
    assert "100 caches" in text
    assert "and 60 more (--json shows all)" in text


def test_a_terminal_shows_the_looks_in_one_place(invoke, owner, monkeypatch):
    _, address = owner
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    output = invoke("inspect", address).output
    assert "LINKED" in output
    assert "\x1b[?25l" in output  # the cursor is hidden meanwhile
