"""Plan of a run: sizes, jobs, time and memory."""

import pytest

from llm_datadist.cli.bench.plan import (
    SWEEP,
    Clock,
    busy_note,
    check_memory,
    model_jobs,
    parse_size,
    shortened,
    size_text,
    sweep_jobs,
    total_bytes,
)
from llm_datadist.cli.bench.presets import preset
from llm_datadist.cli.bench.work import MIB

BOTH = ("pull", "push")


def test_the_sweep_is_from_256_bytes_to_64_mib():
    assert (SWEEP[0], SWEEP[-1], len(SWEEP)) == (256, 64 * MIB, 10)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256", 256), ("4K", 4096), ("4KiB", 4096), ("1m", MIB), ("2 GiB", 2 << 30), ("8B", 8)],
)
def test_sizes(text, size):
    assert parse_size(text.replace(" ", "")) == size


@pytest.mark.parametrize("text", ["", "K", "1.5M", "4X", "-1", "KK", "1KM"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(ValueError, match="is no size; give a number of bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(256, "256 B"), (4096, "4 KiB"), (64 * MIB, "64 MiB"), (2 << 30, "2 GiB")]
)
def test_sizes_are_shown_in_their_largest_unit(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("block_bytes", "slot_s", "expected"),
    [
        (4096, 0.0, 2 * MIB),  # the least
        (4096, 100.0, 64 * MIB),  # 16,384 blocks
        (MIB, 1.0, 50 * MIB),
        (MIB, 100.0, 256 * MIB),  # the most
        (64 * MIB, 0.0, 128 * MIB),  # two blocks
    ],
)
def test_how_much_a_transfer_moves(block_bytes, slot_s, expected):
    assert total_bytes(block_bytes, slot_s) == expected


def test_usual_sizes_come_first():
    jobs = sweep_jobs("tcp", SWEEP, BOTH, 1.0)
    assert [job.case.name for job in jobs][:3] == ["64 KiB", "16 KiB", "256 KiB"]
    assert {job.case.block_bytes for job in jobs} == set(SWEEP)


def test_a_job_shrinks_with_the_time_unless_it_is_a_models():
    (job,) = sweep_jobs("tcp", [MIB], BOTH, 2.0)
    assert shortened(job, 1.0).case.total_bytes == 50 * MIB
    assert shortened(job, 9.0) is job
    (job,) = model_jobs("tcp", [preset("llama-3.1-8b")], [64], BOTH)
    assert shortened(job, 0.0) is job


def test_a_job_for_each_model_and_prompt():
    models = [preset("llama-3.1-8b"), preset("deepseek-v3")]
    jobs = model_jobs("tcp", models, iter([16, 64]), BOTH)
    assert [(job.preset.name, job.prompt_tokens) for job in jobs] == [
        ("llama-3.1-8b", 16),
        ("llama-3.1-8b", 64),
        ("deepseek-v3", 16),
        ("deepseek-v3", 64),
    ]


@pytest.fixture
def now(monkeypatch):
    time = [100.0]
    monkeypatch.setattr("llm_datadist.cli.bench.plan.time.monotonic", lambda: time[0])
    return time


def test_time_is_divided_among_what_is_left(now):
    clock = Clock(12.0, 4)
    assert (clock.left_s, clock.share_s, clock.expected_s) == (12.0, 3.0, 12.0)
    now[0] += 1
    clock.step()
    assert clock.share_s == pytest.approx(11 / 3)
    assert clock.expected_s == 3.0  # as fast as the first
    with clock.paused():
        now[0] += 50
    assert clock.elapsed_s == 1.0
    now[0] += 20
    clock.step(3)
    assert (clock.left_s, clock.share_s) == (0.0, 0.0)
    clock.steps = 8
    assert clock.expected_s == 21.0  # the time is over, and half is done


@pytest.mark.parametrize(
    ("load", "text"), [(0.9, ""), (13.94, "the machine was busy before the run (load 13.9 on 2 ")]
)
def test_a_busy_machine_is_noted(monkeypatch, load, text):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    assert busy_note().startswith(text)
    assert bool(busy_note()) == bool(text)


def test_too_little_memory_is_an_error_with_the_remedy():
    check_memory(MIB, "")
    with pytest.raises(ValueError, match=r"needs 1,\d{3},\d{3},\d{3} MiB .* spare: shrink it"):
        check_memory(1 << 50, "shrink it")
