"""`llm-datadist ping`: the link, its path and its round trips, or why there are none."""

import json
import os

import pytest

from llm_datadist import LLMDataDist, LLMException, LLMStatusCode
from llm_datadist.cli.ping_command import _summary
from support.authority import Authority

QUICK = ("--count", 3, "--interval", 0)


def test_a_peer_that_answers(invoke, peer):
    _, address = peer()
    outcome = invoke("ping", address, *QUICK)
    assert outcome.exit_code == 0
    linked, path, pings = outcome.output.splitlines()
    assert linked.startswith(f"linked to cluster 1 at {address} in ")
    assert path.startswith("blocks move over ")
    assert pings.startswith("3 pings, 0 lost: min ")


def test_json(invoke, peer):
    instance, address = peer(transfer_backend="tcp")
    outcome = invoke("ping", address, *QUICK, "--json")
    found = json.loads(outcome.output)
    assert (found["peer"], found["cluster_id"], found["problem"]) == (address, 1, "")
    assert (found["sent"], found["lost"], found["encrypted"]) == (3, 0, "nothing")
    assert found["backend"] == {"host": "tcp", "device": "tcp"}
    assert 0 < found["rtt_ms"]["min"] <= found["rtt_ms"]["median"] <= found["rtt_ms"]["p99"]
    assert instance.describe_links() == []


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], None),
        ([2.0], {"min": 2.0, "median": 2.0, "p99": 2.0}),
        ([3.0, 1.0, 2.0, 4.0], {"min": 1.0, "median": 2.0, "p99": 4.0}),
        ([float(n) for n in range(1, 201)], {"min": 1.0, "median": 100.0, "p99": 198.0}),
    ],
)
def test_percentiles_are_nearest_ranks(times, expected):
    assert _summary(times) == expected


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1", "give ip:port"),
        ("127.0.0.1:70000", "port"),
        ("no-such-host.invalid:1", "cannot be resolved"),
    ],
)
def test_no_peer(invoke, address, text):
    outcome = invoke("ping", address)
    assert outcome.exit_code == 1
    assert text in outcome.output


@pytest.mark.expects_log("secret")
def test_the_secret_comes_from_a_file(invoke, peer, tmp_path):
    _, address = peer(link_secret="shared")
    path = tmp_path / "secret"
    path.write_text("shared\n")
    path.chmod(0o600)
    assert "has a secret" in invoke("ping", address, *QUICK).output
    outcome = invoke("ping", address, *QUICK, "--secret-file", path)
    assert outcome.exit_code == 0
    assert "LLM_DATADIST_SECRET_FILE" not in os.environ


def test_the_files_of_tls(invoke, peer, tmp_path):
    authority = Authority(tmp_path)
    _, address = peer(**authority.issue())
    files = authority.issue()
    options = [
        part for kind in ("cert", "key", "ca") for part in (f"--tls-{kind}", files[f"tls_{kind}"])
    ]
    outcome = invoke("ping", address, *QUICK, *options)
    assert outcome.exit_code == 0
    assert "encrypted: control" in outcome.output


def test_a_ping_that_is_late_is_lost_and_the_next_one_counts(invoke, peer, monkeypatch):
    _, address = peer()
    answers = iter([LLMStatusCode.LLM_TIMEOUT, None, None])
    check = LLMDataDist.check_link_status

    def late_once(self, cluster_id):
        if (status := next(answers)) is not None:
            raise LLMException("no answer; wait", status_code=status)
        check(self, cluster_id)

    monkeypatch.setattr(LLMDataDist, "check_link_status", late_once)
    outcome = invoke("ping", address, *QUICK)
    assert outcome.exit_code == 1
    assert "3 pings, 1 lost: min " in outcome.output
    assert "no answer; wait" in outcome.output


def test_a_peer_that_ends_meanwhile(invoke, peer, monkeypatch):
    """Before the third ping."""
    instance, address = peer()
    pauses = iter([lambda: None, lambda: None, instance.finalize])
    monkeypatch.setattr("llm_datadist.cli.ping_command.sleep", lambda _: next(pauses)())
    outcome = invoke("ping", address, "--count", 9, "--json")
    found = json.loads(outcome.output)
    assert outcome.exit_code == 1
    assert (found["sent"], found["lost"]) == (3, 1)
    assert "check_link_status failed" in found["problem"]
