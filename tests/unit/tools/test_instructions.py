"""Counts of instructions are compared with a baseline, case by case."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "instructions"


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("instructions_check", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("ratio", "code"), [(0.5, 0), (1.0, 0), (1.06, 0), (1.08, 1), (3.0, 1)])
def test_only_more_than_the_margin_fails(check, capsys, ratio, code):
    counts = {"reference": 100.0, "pull": 100 * ratio, "new": 5.0}
    ratios = {"reference": 1.0, "pull": ratio, "new": 0.05}
    assert check.compare(counts, ratios, {"reference": 1.0, "pull": 1.0}) == code
    assert ("above the baseline: pull" in capsys.readouterr().out) is bool(code)


def test_without_valgrind_it_says_so(check, capsys, monkeypatch):
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["instructions"])
    assert check.main() == 0
    assert "LEFT OUT: valgrind" in capsys.readouterr().out


def test_a_version_without_a_baseline_is_not_compared(check, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "works", lambda: True)
    monkeypatch.setattr(check, "measure", lambda: {"reference": 10.0, "pull": 20.0})
    monkeypatch.setattr(check, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(sys, "argv", ["instructions"])
    assert check.main() == 0
    assert "LEFT OUT: there is no baseline" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["instructions", "--update"])
    assert check.main() == 0
    monkeypatch.setattr(sys, "argv", ["instructions"])
    monkeypatch.setattr(check, "measure", lambda: {"reference": 10.0, "pull": 30.0})
    assert check.main() == 1


def test_a_file_of_callgrind_has_one_total(check, tmp_path):
    file = tmp_path / "out.1-01"
    file.write_text("version: 1\nevents: Ir\nfn=(1) main\n0 7\ntotals: 1234\n")
    assert check.total(file) == 1234


def test_the_baseline_has_what_is_counted():
    baseline = json.loads((FOLDER / "baseline.json").read_text())
    workload = (FOLDER / "workload.py").read_text()
    for ratios in baseline.values():
        assert ratios.pop("reference") == 1.0
        for name in ratios:
            assert name.split(" among ")[0] in workload
