"""Outcomes of the native core become values with names."""

from __future__ import annotations

from llm_datadist._backends.outcomes import Code, Outcome, as_outcome


def test_what_the_core_returns_has_names():
    outcome = as_outcome((int(Code.GONE), 14, 3, 4096))
    assert type(outcome) is Outcome
    assert outcome == Outcome(Code.GONE, 14, 3, 4096)
    assert (outcome.code, outcome.sys_errno, outcome.descriptor) == (Code.GONE, 14, 3)
    assert outcome._replace(moved_bytes=0).moved_bytes == 0
