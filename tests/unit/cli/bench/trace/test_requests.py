"""Files of traces: what a line must be."""

import pytest

from llm_datadist.cli.bench.trace.requests import Request, read_requests

LINE = '{"timestamp": %d, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]}\n'


def test_requests_are_in_order_of_time(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(LINE % 9 + "\n" + LINE % 3 + LINE % 1)
    assert [each.timestamp for each in read_requests(path)] == [1, 3, 9]
    assert read_requests(path, 1) == [Request(9, 700, 5, [1, 2])]


def test_fields_of_other_traces_are_ignored(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(LINE.replace("{", '{"round": 2, ') % 1)
    assert read_requests(path)[0].hash_ids == [1, 2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no requests"),
        (LINE % 1 + "{", "line 2: no request: "),
        (LINE % -1, "line 1: no request: .*timestamp"),
        ('{"timestamp": 1}', r"line 1: .*missing required field `input_length`.*hash_ids"),
        (LINE.replace("[1, 2]", '["a"]') % 1, r"line 1: .*hash_ids"),
    ],
)
def test_what_is_no_trace_is_named_with_its_line(tmp_path, text, problem):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_requests(path)
