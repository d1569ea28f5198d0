"""What `llm-datadist doctor` prints, and its exit status."""

import json

import pytest
from typer.testing import CliRunner

from llm_datadist.cli.app import app
from llm_datadist.cli.doctor import checks
from llm_datadist.cli.doctor.finding import ok, problem, warning


def invoke(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


@pytest.fixture
def fixed(monkeypatch):
    """Replace the checks by ones with these findings."""

    def replace(*found):
        monkeypatch.setattr(checks, "all_checks", lambda *_, **__: [lambda: found])

    return replace


@pytest.mark.parametrize(
    ("worst", "status"),
    [(ok("a", "fine"), 0), (warning("a", "slow", "mend"), 0), (problem("a", "gone", "mend"), 1)],
)
def test_only_problems_are_failures(fixed, worst, status):
    fixed(ok("b", "good"), worst)
    assert invoke().exit_code == status
    assert invoke("--json").exit_code == status


def test_every_finding_is_shown_with_its_remedy(fixed):
    fixed(ok("a", "[fine]"), problem("b", "gone", "mend it"))
    output = invoke().output
    lines = [line.split() for line in output.splitlines()]
    assert lines[:3] == [["ok", "a", "[fine]"], ["problem", "b", "gone"], ["->", "mend", "it"]]
    assert "1 ok, 0 warning, 1 problem" in output


def test_json(fixed):
    fixed(warning("a", "seen", "mend"))
    (found,) = json.loads(invoke("--json").output)["findings"]
    assert found == {"subject": "a", "state": "warning", "seen": "seen", "remedy": "mend"}


def test_a_check_that_fails_is_a_finding():
    def odd_check():
        yield ok("a", "b")
        raise KeyError("x")

    first, failed, last = checks.findings([odd_check, lambda: [ok("c", "d")]])
    assert (first.subject, last.subject) == ("a", "c")
    assert (failed.subject, failed.state) == ("odd check", "problem")
    assert "KeyError('x')" in failed.seen
    assert "report this" in failed.remedy


@pytest.mark.slow
def test_all_checks_of_this_machine():
    outcome = invoke("--json", "--listen", "127.0.0.1:0", "--peer", "127.0.0.1:x")
    found = json.loads(outcome.output)["findings"]
    subjects = {each["subject"] for each in found}
    assert {"versions", "same-host reads", "NIXL", "GPUs", "port 0", "two processes"} <= subjects
    assert not any("the check failed" in each["seen"] for each in found)
    (peer,) = (each for each in found if each["subject"] == "peer")
    assert (peer["state"], outcome.exit_code) == ("problem", 1)
