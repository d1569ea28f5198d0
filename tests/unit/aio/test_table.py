"""Rows of the directory that a node has in its memory."""

import numpy as np
import pytest

from llm_datadist import LLMException, LLMStatusCode
from llm_datadist.aio import table as module
from llm_datadist.aio.table import NUM_ROWS, ROW_BYTES, decode_row, encode_row


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0)


class Memory(module._Table):
    """A table of this process; `before_read` plays what peers do meanwhile."""

    def __init__(self):
        self.rows = np.zeros((NUM_ROWS, ROW_BYTES), np.uint8)
        self.before_read = lambda: None

    def read(self):
        self.before_read()
        return self.rows.copy()

    def write(self, index, row):
        self.rows[index] = row
        self.written = index


@pytest.mark.parametrize("name", ["prefill-0", "节点", "a" * 400])
def test_rows_are_what_was_written(name):
    assert decode_row(encode_row(name, "host:1")) == (name, "host:1")


def test_texts_that_are_too_long():
    with pytest.raises(ValueError, match="496 is the most"):
        encode_row("a" * 491, "host:1")


def test_rows_that_are_free_half_written_or_forged():
    row = encode_row("prefill-0", "host:1").copy()
    assert decode_row(np.zeros(ROW_BYTES, np.uint8)) is None
    assert decode_row(np.full(ROW_BYTES, 255, np.uint8)) is None
    row[20] ^= 1
    assert decode_row(row) is None


def test_names_are_announced_found_and_withdrawn():
    table = Memory()
    for number in range(100):
        table.announce(f"node-{number}", f"host:{number}")
    table.announce("node-7", "other:7")
    assert table.find("node-7") == "other:7"
    assert table.find("node-99") == "host:99"
    assert table.find("node-100") is None
    table.withdraw("node-7", "host:7")
    assert table.find("node-7") == "other:7"
    table.withdraw("node-7", "other:7")
    table.withdraw("node-7", "other:7")
    assert table.find("node-7") is None
    assert np.count_nonzero(table.rows.any(1)) == 99


def test_a_row_that_another_node_took_at_the_same_moment():
    table, taken = Memory(), []

    def overwrite():
        if not taken and table.rows.any():
            taken.append(table.written)
            table.rows[table.written] = encode_row("other", "host:2")

    table.before_read = overwrite
    table.announce("node", "host:1")
    assert taken
    assert (table.find("node"), table.find("other")) == ("host:1", "host:2")


def test_a_row_that_another_node_takes_a_moment_later(monkeypatch):
    """It had read the free row before, and writes while this node waits before it looks."""
    table, taken = Memory(), []

    def other_writes(_seconds):
        if not taken:
            taken.append(table.written)
            table.rows[table.written] = encode_row("other", "host:2")

    monkeypatch.setattr(module.time, "sleep", other_writes)
    table.announce("node", "host:1")
    assert taken
    assert (table.find("node"), table.find("other")) == ("host:1", "host:2")


def test_a_full_table():
    table = Memory()
    table.rows[:] = encode_row("other", "host:2")
    with pytest.raises(LLMException, match="no row for 'node'") as error:
        table.announce("node", "host:1")
    assert error.value.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY


def test_names_that_have_one_id_have_rows_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "cluster_id_of", lambda name: 77)
    table = Memory()
    table.announce("node", "host:1")
    table.announce("other", "host:2")
    table.withdraw("node", "host:1")
    assert (table.find("node"), table.find("other")) == (None, "host:2")


class Instance:
    """An instance whose link to the directory is gone once, or fails otherwise."""

    def __init__(self, failure):
        self.cache_manager, self.cluster_id = self, 3
        self.failures, self.linked, self.pulls = [failure], [], 0

    def register_tensors(self, tensors, **options):
        return tensors

    def link_peer(self, address):
        self.linked.append(address)
        return 5

    def pull_blocks(self, key, cache, source, target):
        self.pulls += 1
        if self.failures:
            raise LLMException("pull_blocks: failed", status_code=self.failures.pop())


@pytest.mark.parametrize("status", [LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_TIMEOUT])
def test_a_directory_whose_link_is_gone_is_linked_again(status):
    instance = Instance(status)
    table = module.PeerTable(instance, "host:1")
    if status is LLMStatusCode.LLM_NOT_YET_LINK:
        assert table.find("node") is None
        assert (instance.linked, instance.pulls) == (["host:1", "host:1"], 2)
    else:
        with pytest.raises(LLMException):
            table.find("node")
        assert (instance.linked, instance.pulls) == (["host:1"], 1)
