"""How runs of `llm-datadist bench` end: sentences, exit statuses, and what is quiet."""

import logging
import os
import signal

import pytest

from llm_datadist import LLMException, LLMStatusCode
from llm_datadist.cli.bench import processes
from llm_datadist.cli.bench.ending import check_files, exit_status


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(processes.OUTPUT, "")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (None, 0, ""),
        (ValueError("give [less]"), 2, "error: give [less]"),
        (LLMException("gone", status_code=LLMStatusCode.LLM_LINK_FAILED), 1, "error: gone"),
        (RuntimeError("failed\nTraceback"), 1, "error: failed (--verbose shows more)"),
        (OSError(28, "No space left on device", "x.json"), 1, "error: x.json: No space left on"),
        (KeyboardInterrupt(), 130, "error: interrupted; the processes of the run have ended"),
    ],
    ids=str,
)
def test_errors_become_a_sentence_and_a_status(capsys, error, status, text):
    with exit_status(verbose=False) as outcome:
        if error is not None:
            raise error
    assert outcome.status == status
    assert capsys.readouterr().err.startswith(text)


def test_sigterm_is_as_ctrl_c_until_the_run_ends(capsys):
    def unexpected(*_):
        raise AssertionError("SIGTERM was not taken")

    before = signal.signal(signal.SIGTERM, unexpected)
    try:
        with exit_status(verbose=False) as outcome:
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is unexpected
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.status == 130
    assert capsys.readouterr().err.startswith("error: interrupted")


def test_all_of_a_failure_is_shown_on_request(capsys):
    with exit_status(verbose=True):
        raise RuntimeError("failed\nTraceback")
    assert capsys.readouterr().err == "error: failed\nTraceback\n"


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_of_the_library_are_shown_on_request_only(caplog, verbose):
    logger = logging.getLogger("llm_datadist.links")
    with exit_status(verbose=verbose):
        assert os.environ[processes.OUTPUT] == str(int(verbose))
        assert logger.isEnabledFor(logging.ERROR) is verbose
    assert logger.isEnabledFor(logging.ERROR)


def test_files_that_cannot_be_written_are_refused_before_the_run(tmp_path):
    check_files(tmp_path / "x.json")
    check_files(None)
    with pytest.raises(ValueError, match=r"--json .*there is no directory"):
        check_files(tmp_path / "none" / "x.json")
