"""The JSON of a run: names and types that programs rely on."""

import json

import pytest

from llm_datadist.cli.bench.results import Latency, Limit, Result, new_run, read_run, write_json

RESULT = Result(
    path="tcp",
    operation="pull",
    kind="blocks",
    contender="llm-datadist (tcp)",
    block_bytes=4096,
    num_blocks=4,
    num_tensors=1,
    total_bytes=16384,
    gbps=[2.0, 1.0, 4.0],
)


def test_fields_of_the_file(tmp_path):
    """`docs/reference/command-line.md` has them; a change of one of them is a new schema."""
    RESULT.settle()
    run = new_run()
    run.results, run.limits = [RESULT], [Limit("tcp", "iperf3 -P 2", 3.0)]
    run.latencies = [Latency("tcp", "llm-datadist (tcp)", 20.0, 30.0)]
    path = tmp_path / "run.json"
    write_json(path, run)
    found = json.loads(path.read_text())
    assert list(found) == [
        *("schema", "version", "started", "seconds", "machine", "peer"),
        *("results", "latencies", "limits", "notes"),
    ]
    assert found["schema"] == 1
    assert list(found["machine"]) == ["cpu", "cores", "memory_bytes", "kernel", "python"]
    assert list(found["results"][0]) == [
        *("path", "operation", "kind", "contender", "is_limit"),
        *("preset", "tp", "prompt_tokens"),
        *("block_bytes", "num_blocks", "num_tensors", "total_bytes"),
        *("gbps", "gbps_median", "ms_median", "problem"),
    ]
    assert (found["results"][0]["gbps_median"], found["results"][0]["ms_median"]) == (2.0, 0.0082)
    assert found["latencies"][0] == {
        "path": "tcp",
        "contender": "llm-datadist (tcp)",
        "p50_us": 20.0,
        "p99_us": 30.0,
    }
    assert found["limits"][0] == {"path": "tcp", "name": "iperf3 -P 2", "gbps": 3.0}
    assert read_run(path) == run


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[]", "is not the file of a run"), ("{", "is not the file of a run")],
)
def test_another_file_is_refused(tmp_path, text, problem):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_run(path)


def test_another_schema_is_refused(tmp_path):
    run = new_run()
    run.schema = 9
    write_json(tmp_path / "run.json", run)
    with pytest.raises(ValueError, match="has schema 9, not 1: make it again"):
        read_run(tmp_path / "run.json")
