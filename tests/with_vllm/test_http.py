"""Two API servers and the example's router: what a client of the router gets, end to end."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from itertools import chain
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.vllm.engines import BLOCK, MAX_MODEL_LEN, prompt, transfer_config
from support.vllm.pairs import ENV

ROUTER = Path(__file__).parents[2] / "examples" / "vllm_disaggregated" / "router.py"
START_S = 300
TRANSFERS = {"pull_blocks", "push_blocks"}
ASK_S = 120


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def process(*command):
    """A child that is ended, with its own children, however the test goes."""
    env = {**os.environ, **ENV, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    child = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status, answer.read()


def post(url, body, headers):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=ASK_S) as answer:
        return answer.read().decode()


def until_healthy(url, child, accept=lambda _: True):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert child.poll() is None, f"{url}: ended with {child.returncode}"
        with contextlib.suppress(OSError):
            if accept(get(f"{url}/health")[1]):
                return
        time.sleep(0.5)
    raise AssertionError(f"{url} is not healthy after {START_S} s")


class SpanCollector(http.server.ThreadingHTTPServer):
    """Receives the spans of servers, as a collector of OpenTelemetry does."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), SpanReceiver)
        self.spans = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}/v1/traces"

    def of_trace(self, trace_id):
        """Spans of a trace that have arrived: (name, attributes)."""
        return [
            (span.name, {each.key: each.value.string_value for each in span.attributes})
            for span in self.spans
            if span.trace_id.hex() == trace_id
        ]


class SpanReceiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture(scope="module")
def collector():
    with SpanCollector() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def server(model, port, role, mode, collector):
    return process(
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model, "--served-model-name", "tiny", "--host", "127.0.0.1"),
        *("--port", str(port), "--skip-tokenizer-init", "--dtype", "float32"),
        *("--block-size", str(BLOCK), "--max-model-len", str(MAX_MODEL_LEN)),
        *("--enforce-eager", "--max-num-seqs", "16", "--num-gpu-blocks-override", "400"),
        *("--kv-cache-memory-bytes", str(256 << 20)),
        *("--kv-transfer-config", json.dumps(transfer_config(role, mode=mode))),
        *("--otlp-traces-endpoint", collector.endpoint),
    )


@pytest.fixture(scope="module", params=["pull", "push"])
def urls(model, request, collector):
    """URLs of the prefill server, the decode server, and a router that knows a third, dead one."""
    ports = [free_port() for _ in range(4)]
    prefill, decode, router, dead = (f"http://127.0.0.1:{port}" for port in ports)
    with (
        server(model, ports[0], "kv_producer", request.param, collector) as one,
        server(model, ports[1], "kv_consumer", request.param, collector) as two,
    ):
        until_healthy(prefill, one)
        until_healthy(decode, two)
        command = [sys.executable, str(ROUTER), "--port", str(ports[2])]
        command += ["--prefill", dead, "--prefill", prefill, "--decode", dead, "--decode", decode]
        with process(*command, *["--push"] * (request.param == "push")) as three:
            until_healthy(
                router,
                three,
                lambda body: {prefill, decode} <= {*chain(*json.loads(body).values())},
            )
            yield prefill, decode, router


def completion(url, tokens, headers=None, **more):
    body = {
        "model": "tiny",
        "prompt": tokens,
        "max_tokens": 16,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }
    return post(f"{url}/v1/completions", body, headers or {})


def token_ids(answer):
    return json.loads(answer)["choices"][0]["token_ids"]


def test_completions_through_the_router(urls):
    prefill, _, router = urls
    for seed, length in enumerate((3, 40, 300, 800)):
        tokens = prompt(900 + seed, length)
        through_router = token_ids(completion(router, tokens))
        assert len(through_router) == 16
        assert through_router == token_ids(completion(prefill, tokens))


def test_a_stream_through_the_router(urls):
    prefill, _, router = urls
    tokens = prompt(950, 200)
    lines = [
        json.loads(line.removeprefix("data: "))
        for line in completion(router, tokens, stream=True).splitlines()
        if line.startswith("data: {")
    ]
    streamed = [token for line in lines for token in line["choices"][0]["token_ids"] or []]
    assert streamed == token_ids(completion(prefill, tokens))


def test_the_decode_server_did_fetch(urls):
    """Its metrics count tokens that came from outside."""
    _, decode, router = urls
    completion(router, prompt(960, 500))
    text = get(f"{decode}/metrics")[1].decode()
    hits = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("vllm:external_prefix_cache_hits_total")
    ]
    assert sum(hits) >= 499


def figures(url):
    """The connector's samples in a server's metrics: name and labels of its own -> value."""
    text = get(f"{url}/metrics")[1].decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("vllm:llm_datadist_"):
            sample, value = line.removeprefix("vllm:llm_datadist_").rsplit(" ", 1)
            name, _, labels = sample.rstrip("}").partition("{")
            own = [each for each in labels.split(",") if not each.startswith(("engine", "model"))]
            found[" ".join([name, *own])] = float(value)
    return found


def test_both_servers_show_what_was_transferred(urls):
    """Requests, bytes and seconds of the consumer, releases of the producer, none recomputed."""
    prefill, decode, router = urls
    completion(router, prompt(969, 100))  # in push mode the first request is pulled
    before = figures(decode)
    for seed in (970, 971):
        completion(router, prompt(seed, 500))
    after = figures(decode)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['requests_fetched_total path="host"'] == 2
    assert grown['fetch_seconds_count path="host"'] == 2
    assert 0 < grown['fetch_seconds_sum path="host"'] < ASK_S
    assert grown['fetched_bytes_total path="host"'] > 0
    assert not [name for name in grown if name.startswith("requests_recomputed")]
    completion(prefill, prompt(972, 3))  # vLLM takes the figures at the end of a step
    producer = figures(prefill)
    released = [value for name, value in producer.items() if "released_total" in name]
    assert sum(released) >= 3
    assert producer["requests_held"] == 0


def test_the_transfer_is_in_the_trace_of_the_request(urls, collector):
    """With the spans of both servers, and with the id that vLLM has made of the client's."""
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01", "X-Request-Id": "mine"}
    completion(urls[2], prompt(980, 500), headers)
    deadline = time.monotonic() + 60
    while True:
        spans = collector.of_trace(trace_id)
        transfers = [attributes for name, attributes in spans if name in TRANSFERS]
        if transfers and len(spans) - len(transfers) >= 2:
            break
        assert time.monotonic() < deadline, spans
        time.sleep(0.2)
    assert all("mine" in each["llm_datadist.request_id"] for each in transfers), transfers
    assert {each["llm_datadist.status"] for each in transfers} == {"LLM_SUCCESS"}


def test_a_wrong_request_gets_the_servers_answer(urls):
    with pytest.raises(urllib.error.HTTPError) as caught:
        completion(urls[2], prompt(1, 10), max_tokens=-1)
    with caught.value as answer:  # it holds the connection
        assert answer.code == 400
