"""The performance page: made from stored runs, and checked against them."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from llm_datadist.cli.bench.results import Latency, Limit, Machine, Run, write_json
from support.bench_results import result

ROOT = Path(__file__).parents[3]


def a_run(day, *results):
    model = {"kind": "model", "preset": "llama-3.1-8b", "tp": 1, "prompt_tokens": 2048}
    return Run(
        version="0.1.0",
        started=f"2026-01-{day:02}T00:00:00+00:00",
        seconds=60.0,
        machine=Machine("a processor", day, 16 << 30, "6.1", "3.12.0"),
        results=[
            result(),
            result(contender="NIXL", gbps=[], problem="failed"),
            result(operation="push", block_bytes=1 << 20, gbps=[4.0]),
            result(**model, gbps=[1.5]),
            *results,
        ],
        latencies=[Latency("tcp", "llm-datadist (tcp)", 20.0, 30.0)],
        limits=[Limit("tcp", "iperf3 -P 2", 3.0)],
        notes=["tcp: no time for 64 MiB"],
    )


@pytest.fixture
def make(monkeypatch, capsys):
    """Call the tool in a folder; return its exit status, and what it wrote to standard error."""
    path = ROOT / "tools/make_performance.py"
    spec = importlib.util.spec_from_file_location("make_performance", path)
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, tool)  # for its dataclass
    spec.loader.exec_module(tool)

    def call(folder, *options):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [str(path), *options])
        status = tool.main()
        return status, capsys.readouterr().err

    return call


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "benchmarks/runs").mkdir(parents=True)
    return tmp_path


def store(folder, name, run):
    write_json(folder / f"benchmarks/runs/{name}.json", run)


def test_the_page_of_this_tree_is_that_of_its_runs(make):
    assert make(ROOT, "--check") == (0, "")


@pytest.mark.slow
def test_the_newest_run_is_first_and_has_pictures(make, folder):
    pytest.importorskip("matplotlib")
    store(folder, "old", a_run(1))
    store(folder, "new", a_run(2))
    assert make(folder) == (0, "")
    assert make(folder, "--check") == (0, "")
    text = (folder / "docs/performance.md").read_text()
    assert re.findall(r"^#+ .*", text, re.MULTILINE)[1:] == [
        "## a processor, 2 cores, 2026-01-02",
        "### tcp",
        "## Earlier runs",
        "### a processor, 1 cores, 2026-01-01",
        "#### tcp",
    ]
    assert text.count("![") == 1
    assert "| 4 KiB | 2.00 | - | - |" in text
    assert "| 1 MiB | - | - | 4.00 |" in text
    assert "| llama-3.1-8b, TP 1, 2,048 tokens | 1.50 |" in text
    assert "Limit: iperf3 -P 2 3.00 GB/s." in text
    image = folder / "docs/images/performance-new-tcp.svg"
    before = image.read_text()

    store(folder, "new", a_run(2, result(block_bytes=256)))
    status, problems = make(folder, "--check")
    assert status == 1
    assert problems.splitlines() == [
        "docs/images/performance-new-tcp.svg is not that of new.json: run 'make performance'",
        "docs/performance.md is not that of the runs: run 'make performance'",
    ]
    store(folder, "newer", a_run(3))
    assert make(folder) == (0, "")
    assert not image.exists()
    (folder / "benchmarks/runs/newer.json").unlink()
    store(folder, "new", a_run(2))
    assert make(folder) == (0, "")
    assert image.read_text() == before  # the same each time


def test_a_page_without_runs_is_an_error(make, folder):
    assert make(folder, "--check") == (0, "")
    (folder / "docs").mkdir()
    (folder / "docs/performance.md").touch()
    status, problems = make(folder, "--check")
    assert (status, problems) == (
        1,
        "docs/performance.md has no runs: store one in benchmarks/runs\n",
    )


def test_a_file_that_is_no_run_is_named(make, folder):
    (folder / "benchmarks/runs/x.json").write_text("{}")
    status, problems = make(folder, "--check")
    assert status == 1
    assert "benchmarks/runs/x.json is not the file of a run" in problems
