"""Blocks between two processes: by the fast path, by another one, or not at all."""

import subprocess

import numpy as np
import pytest

from llm_datadist import CacheManager
from llm_datadist.cli.doctor.transfers import transfers
from support.restricted import findings_of

pytestmark = pytest.mark.slow


def test_blocks_move():
    (found,) = transfers()
    assert found.state in {"ok", "warning"}
    assert "GB/s" in found.seen


def test_the_same_host_path_is_denied():
    preparation = "from support.restricted import deny_reads; deny_reads(1)"
    (found,) = findings_of("transfers.transfers()", preparation)
    assert found["state"] == "warning"
    assert "blocks move over tcp" in found["seen"]
    assert "host: " in found["seen"]
    assert "same-host reads" in found["remedy"]


def test_the_second_process_cannot_start(monkeypatch):
    monkeypatch.setenv("LLM_DATADIST_SECRET_FILE", "/none/at/all")
    (found,) = transfers()
    assert found.state == "problem"
    assert "could not start an instance" in found.seen
    assert "LLM_DATADIST_SECRET_FILE" in found.seen


@pytest.mark.expects_log("secret")
def test_two_processes_that_cannot_link(monkeypatch):
    monkeypatch.setenv("LLM_DATADIST_SECRET", "of the peer only")
    start = subprocess.Popen

    def start_and_forget(*args, **kwargs):
        process = start(*args, **kwargs)
        monkeypatch.delenv("LLM_DATADIST_SECRET")
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_forget)
    (found,) = transfers()
    assert found.state == "problem"
    assert "has a secret" in found.seen
    assert "the same link_secret on both sides" in found.remedy


def test_bytes_that_differ(monkeypatch):
    monkeypatch.setattr(CacheManager, "pull_blocks", lambda *_: np.zeros(1))
    (found,) = transfers()
    assert found.state == "problem"
    assert "bytes differ" in found.seen
    assert "report this" in found.remedy
