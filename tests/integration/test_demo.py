"""The real demo, as a user runs it: its own processes, real transfers, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "llm_datadist.cli", "demo"]
QUICK = ["--layers", "2", "--requests", "3", "--prompt-tokens", "150", "--max-new-tokens", "6"]
LONG = ["--layers", "2", "--requests", "2", "--prompt-tokens", "60", "--max-new-tokens", "512"]

pytestmark = pytest.mark.slow


def run_demo(*options, timeout=110):
    return subprocess.run(
        [*COMMAND, *QUICK, *options], capture_output=True, text=True, timeout=timeout, check=False
    )


def check_result(outcome, mode, *, same_bytes=True, layers=2):
    assert outcome.returncode == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert result["mode"] == mode
    assert result["tokens_equal"]
    assert result["logits_equal"] or not same_bytes
    assert result["residents_intact"]
    assert len(result["requests"]) == 3
    assert len({tuple(one["tokens"]) for one in result["requests"]}) == 3
    for one in result["requests"]:
        assert one["tokens"] == one["reference_tokens"]
        assert len(one["tokens"]) == 6
        assert one["blocks"] == len(one["source_blocks"]) == -(-one["prompt_tokens"] // 16)
        assert len(set(one["target_blocks"])) == one["blocks"]
        assert not set(one["target_blocks"]) & set(one["source_blocks"])
        assert one["kv_bytes"] == one["blocks"] * 16 * 1024 * layers
        assert one["transfer_ms"] > 0
    return result


@pytest.mark.parametrize("backend", ["auto", "tcp"])
def test_pull(backend):
    result = check_result(run_demo("--json", "--backend", backend), "pull")
    transfers = [span for span in result["timeline"] if span["kind"] == "transfer"]
    assert [span["layer"] for span in transfers] == [None] * 3
    if backend == "tcp":
        assert result["backend"] == "tcp"


@pytest.mark.parametrize("backend", ["auto", "tcp"])
def test_layerwise_sends_each_layer_while_later_ones_are_computed(backend):
    outcome = run_demo("--json", "--mode", "layerwise", "--backend", backend, "--layers", "8")
    result = check_result(outcome, "layerwise", layers=8)
    overlapped = 0
    for request in range(3):
        spans = [span for span in result["timeline"] if span["request"] == request]
        computes = {span["layer"]: span for span in spans if span["kind"] == "compute"}
        transfers = {span["layer"]: span for span in spans if span["kind"] == "transfer"}
        assert set(computes) == set(transfers) == set(range(8))
        assert all(transfers[n]["start_ms"] >= computes[n]["start_ms"] for n in range(8))
        overlapped += transfers[0]["start_ms"] < computes[7]["end_ms"]
    assert overlapped, "each request was computed to its end before its first layer was sent"


@pytest.mark.parametrize("mode", ["pull", "layerwise"])
def test_a_spoiled_block_is_noticed(mode):
    outcome = run_demo("--json", "--corrupt-block", "--mode", mode)
    assert outcome.returncode == 1, outcome.stderr
    result = json.loads(outcome.stdout)
    assert [one["tokens_equal"] for one in result["requests"]] == [False, True, True]
    assert not result["tokens_equal"]


@pytest.mark.parametrize("backend", ["auto", "tcp"])
def test_a_fault_is_met_and_mended_while_others_go_on(backend):
    outcome = run_demo("--json", "--inject-fault", "--backend", backend)
    result = check_result(outcome, "pull", same_bytes=False)
    fault, request = result["fault"], result["requests"][1]
    assert fault["request"] == request["name"] == "B"
    assert fault["status"] == "LLM_SUSPECT_REMOTE_ERROR"
    places = [{(one["tensor"], one["block"]) for one in fault[name]} for name in ("lost", "named")]
    assert places[0] == places[1]
    lost = {block for _, block in places[0]}
    assert len(lost) == fault["pulled_blocks"] == 2
    assert lost < set(request["source_blocks"])
    assert fault["arrived_blocks"] == request["blocks"] - 2
    assert fault["recomputed_tokens"] == 32
    spans = [span["request"] for span in result["timeline"] if span["kind"] == "transfer"]
    assert sorted(spans) == [0, 1, 1, 2]


def test_a_fault_as_a_person_sees_it():
    outcome = run_demo("--inject-fault", "--requests", "2")
    assert outcome.returncode == 0, outcome.stderr
    text = " ".join(outcome.stdout.split())
    for part in (
        "B: LLM_SUSPECT_REMOTE_ERROR, blocks",
        "injected under request B",
        "repaired new pages at the same addresses",
        "and lost nothing",
        "All 12 tokens of 2 requests equal",
    ):
        assert part in text


def test_what_a_person_sees(tmp_path):
    pytest.importorskip("matplotlib")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("It was a dark and stormy night. " * 20)
    picture = tmp_path / "timeline.png"
    outcome = run_demo("--prompt-file", str(prompt), "--plot", str(picture), "--seed", "3")
    assert outcome.returncode == 0, outcome.stderr
    text = " ".join(outcome.stdout.split())
    assert "All 18 tokens of 3 requests equal" in text
    assert "layer 1" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_unreadable_prompt_file(tmp_path):
    outcome = run_demo("--prompt-file", str(tmp_path / "none.txt"))
    assert outcome.returncode == 2
    assert "No such file" in outcome.stderr
    assert outcome.stdout == ""


def heed_interrupts():
    """Undo what a shell does for background jobs, so that the demo gets a KeyboardInterrupt."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def long_demo():
    """A demo that runs for a while, and both of its workers; killed with the test."""
    with subprocess.Popen(
        [*COMMAND, *LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - it calls one function, and no thread forks
    ) as process:
        try:
            deadline = time.monotonic() + 30
            while len(workers_of(process)) < 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process, workers_of(process)
        finally:
            process.kill()


def workers_of(process):
    """Process ids of a demo's workers, prefill first."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in children.split() if is_worker(int(pid))]


def is_worker(pid):
    try:
        return b"demo.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if is_worker(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


@pytest.mark.parametrize(("index", "role"), [(0, "prefill"), (1, "decode")])
def test_a_killed_worker_ends_the_demo(index, role, long_demo):
    process, workers = long_demo
    os.kill(workers[index], signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert f"the {role} process was ended by signal 9" in " ".join(errors.split())
    wait_gone(workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process(number, long_demo):
    process, workers = long_demo
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in errors
    wait_gone(workers)


def test_a_killed_demo_leaves_no_process(long_demo):
    process, workers = long_demo
    process.kill()
    process.communicate(timeout=20)
    wait_gone(workers)
