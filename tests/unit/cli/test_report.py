"""The report of a run, from made-up results."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console

from llm_datadist.cli.demo.messages import LayerSpan, Mode
from llm_datadist.cli.demo.model import ModelShape
from llm_datadist.cli.demo.report import print_report, to_json, tokens_line
from llm_datadist.cli.demo.results import DemoResult, RequestResult, Span
from llm_datadist.cli.demo.settings import DemoError, request_name
from llm_datadist.cli.demo.timeline import ASCII, UNICODE, Cell, draw_timeline, row_cells

SHAPE = ModelShape(layers=2)


def request(name="A", tokens=(1, 2, 3), reference=(1, 2, 3), **changes):
    fields = {
        "name": name,
        "prompt_tokens": 1000,
        "kv_bytes": 3 << 20,
        "blocks": 63,
        "source_blocks": [0, 1],
        "target_blocks": [5, 4],
        "prefill_ms": 512.4,
        "transfer_ms": 1.5,
        "exposed_ms": 0.25,
        "gb_per_s": 2.097,
        "time_to_first_token_ms": 514.9,
        "ms_per_token": 12.0,
        "tokens": list(tokens),
        "reference_tokens": list(reference),
        "tokens_equal": tuple(tokens) == tuple(reference),
        "logits_equal": tuple(tokens) == tuple(reference),
    }
    return RequestResult(**(fields | changes))


def result(*requests, mode: Mode = "layerwise", timeline=(), **changes):
    fields = {
        "version": "1.2.3",
        "mode": mode,
        "backend": "host",
        "link": {},
        "seed": 0,
        "block_size": 16,
        "model": SHAPE,
        "tokens_equal": all(one.tokens_equal for one in requests),
        "logits_equal": all(one.logits_equal for one in requests),
        "residents_intact": True,
        "start_up_ms": 1.0,
        "serving_ms": 2.0,
        "reference_ms": 3.0,
        "requests": list(requests),
        "timeline": list(timeline) or [Span(0, "decode", None, 0.0, 1.0)],
    }
    return DemoResult(**(fields | changes))


def printed(one, *, width=100, verbose=False, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_report(Console(file=file, width=width, color_system=None), one, verbose=verbose)
    return raw.getvalue().decode(encoding)


def flat(text):
    """Without line breaks."""
    return " ".join(text.split())


def test_a_row_per_request_and_the_verdict():
    text = printed(result(request("A"), request("B", prompt_tokens=123)))
    row = next(line for line in text.splitlines() if "1,000" in line)
    for part in ("A", "3.00", "63", "512", "1.50", "0.25", "2.10", "515", "yes"):
        assert part in row
    assert any("B" in line and "123" in line for line in text.splitlines())
    text = flat(text)
    assert "All 6 tokens of 2 requests equal" in text
    assert "every logit, bit for bit" in text
    assert "6.0 MiB of KV cache in 126 blocks" in text
    assert "no other block of the decode process changed" in text


def test_a_difference_is_shown_where_it_begins():
    differing = request("B", tokens=(1, 9, 3))
    text = printed(result(request("A"), differing))
    assert "NO" in text
    assert "The tokens of 1 of 2 requests differ" in text
    assert "B: differs from token 2 on: 1 9 3, but in one process 1 2 3" in text
    assert tokens_line(request("C", tokens=(1, 2))).startswith("C: differs from token 3 on")


def test_tokens_are_shown_when_asked_for():
    assert "A: 1 2 3" not in printed(result(request()))
    assert "A: 1 2 3" in printed(result(request()), verbose=True)


def test_other_troubles_are_named():
    text = printed(result(request(logits_equal=False)))
    assert "Some logits differ" in flat(text)
    assert "bit for bit" not in text
    assert "CHANGED" in printed(result(request(), residents_intact=False))


@pytest.mark.parametrize("width", [70, 80, 100, 200])
def test_nothing_is_wider_than_the_terminal(width):
    spans = [Span(i, "compute", 0, i * 10.0, i * 10.0 + 5) for i in range(9)]
    one = result(*(request(request_name(i)) for i in range(9)), timeline=spans)
    assert max(map(len, printed(one, width=width).splitlines())) <= width


def test_plain_ascii_output():
    spans = [Span(0, "compute", 0, 0.0, 5.0), Span(0, "transfer", 0, 2.0, 9.0)]
    text = printed(result(request(), timeline=spans), encoding="ascii")
    assert "'''" in text
    assert "..." in text


def test_json_reads_back():
    one = result(request("A"), request("B", tokens=(4,)))
    line = to_json(one)
    assert "\n" not in line
    assert json.loads(line)["requests"][1]["tokens_equal"] is False
    assert msgspec.json.decode(line, type=DemoResult) == one


def test_spans_fill_their_cells():
    spans = [Span(0, "compute", 0, 0.0, 50.0), Span(1, "transfer", 0, 40.0, 40.1)]
    cells = row_cells(spans, end_ms=100.0, width=10)
    assert [cell.compute for cell in cells] == [0] * 6 + [None] * 4
    assert cells[4] == Cell(0, 1)
    assert [cell.transfer for cell in cells].count(None) == 9


def test_a_span_at_the_very_end_has_a_cell():
    assert row_cells([Span(0, "compute", 0, 100.0, 100.0)], 100.0, 10)[9].compute == 0


def test_timeline_rows_of_both_modes():
    spans = [
        Span(0, "compute", 0, 0.0, 40.0),
        Span(0, "compute", 1, 40.0, 80.0),
        Span(0, "transfer", 0, 20.0, 30.0),
        Span(0, "decode", None, 80.0, 100.0),
    ]
    one = result(request("A"), timeline=spans)
    lines = draw_timeline(one, 59, UNICODE, color=False).plain.splitlines()
    assert lines[0].split() == ["A"]
    assert lines[1].startswith("layer 0  ▀▀▀▀▀▀▀▀▀▀██████▀")
    assert lines[2].split() == ["layer", "1", "▀" * 21]
    assert lines[3].split() == ["decode", "1" * 10]
    assert lines[4].endswith("100 ms")

    pulled = [*spans, Span(0, "transfer", None, 80.0, 82.0)]
    lines = draw_timeline(result(request("A"), timeline=pulled), 59, ASCII, color=False).plain
    assert any(line.split() == ["pull", ".."] for line in lines.splitlines())


def test_names_of_requests():
    assert [request_name(i) for i in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_plot_writes_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from llm_datadist.cli.demo.plot import plot  # needs the extra

    spans = [
        Span(0, "compute", 0, 0.0, 40.0),
        Span(0, "transfer", 0, 20.0, 20.2),
        Span(0, "transfer", None, 80.0, 82.0),
        Span(0, "decode", None, 80.0, 100.0),
    ]
    path = tmp_path / "timeline.png"
    plot(result(request(), mode="pull", timeline=spans), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DemoError, match=r"--plot .*No such file"):
        plot(result(request(), timeline=spans), tmp_path / "none" / "timeline.png")


def test_layer_spans_of_the_gate_are_ordered():
    prefill = pytest.importorskip("llm_datadist.cli.demo.prefill")
    gate = prefill.LayerGate(2)
    gate.open(0)
    assert gate.synchronize_layer(0, None)
    assert not gate.synchronize_layer(1, 1)
    gate.abort()
    assert not gate.synchronize_layer(1, None)
    fresh = prefill.LayerGate(1)
    fresh.open(0)
    fresh.synchronize_layer(0, None)
    (span,) = fresh.spans(end_ns=2**62)
    assert isinstance(span, LayerSpan)
    assert span.start_ns < span.end_ns
