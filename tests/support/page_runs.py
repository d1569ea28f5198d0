"""How the pages whose blocks need more than two linked instances are run; see support.pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMConfig,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    aio,
)
from support.instances import PAGE, Pages, replace
from support.nixl_backends import HAS_NIXL
from support.pages import commands
from support.setup import LOOPBACK, started

BLOCKS = 128


class Pair:
    """A prefill instance, cluster 1, and a decode instance, cluster 2, linked, with a cache each.

    Attributes:
        names: What pages call them and their parts.
    """

    def __init__(self, **options):
        self.prefill = started(1, role=LLMRole.PROMPT, sync_kv_timeout=10_000, **options)
        self.decode = started(2, role=LLMRole.DECODER, sync_kv_timeout=10_000, **options)
        self.decode.link_peer(self.prefill.listen_address, timeout=10_000)
        self.source, self.target = np.ones((2, 2, BLOCKS, 512), np.float16)
        self.target[:] = 0
        self.kept = self.prefill.cache_manager.register_tensors(
            list(self.source), BlocksCacheKey(1)
        )
        self.cache = self.decode.cache_manager.register_tensors(list(self.target))
        self.decode.cache_manager.pull_blocks(BlocksCacheKey(1), self.cache, [0], [0])
        self.names = {
            "prefill": self.prefill,
            "decode": self.decode,
            "instance": self.decode,
            "manager": self.decode.cache_manager,
            "cache": self.cache,
            "config": LLMConfig(),
            "BlocksCacheKey": BlocksCacheKey,
            "DataType": DataType,
            "LLMConfig": LLMConfig,
            "MemInfo": MemInfo,
            "Memtype": Memtype,
        }

    def close(self):
        self.decode.finalize()
        self.prefill.finalize()


@contextlib.contextmanager
def pair(**options):
    made = Pair(**options)
    try:
        yield made
    finally:
        made.close()


def run_page(page, tmp_path, monkeypatch):
    """Run all blocks of a page."""
    if page.name in RUNS:
        RUNS[page.name](page, tmp_path, monkeypatch)
        return
    with pair() as made:
        page.run(made.names, count=None)


def benchmark(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"path": "tcp", "operation": "pull", "preset": "", "block_bytes": 4096}
    for name, rate in (("before", 2.0), ("after", 1.0)):
        each = row | {"contender": "llm-datadist (tcp)", "gbps_median": rate}
        rows = [each, row | {"contender": "NIXL", "gbps_median": None}]
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": rows}))
    page.run({}, count=None)


def containers(page, tmp_path, monkeypatch):
    monkeypatch.setenv("POD_IP", LOOPBACK)
    config = LLMConfig()
    page.run({"config": config, "os": os}, count=None)
    assert config.listen_ip_info == f"{LOOPBACK}:26000"


def diagnose(page, tmp_path, monkeypatch):
    with pair() as made:
        address = "{}:{}".format(*made.prefill.listen_address)
        page.replaced = {
            "decode-3.example:26000": address,
            "HOST:PORT": address,
            "--listen 10.0.0.5:26000": f"--listen {LOOPBACK}:0",
            "10.0.0.5:26000": address,
            "--count 100": "--count 3 --interval 0",
        }
        page.run({}, count=None)


def from_ascend(page, tmp_path, monkeypatch):
    with socket.create_server((LOOPBACK, 0)) as sock:
        page.replaced = {"26000": str(sock.getsockname()[1])}
    page.run({}, count=None)


def layouts(page, tmp_path, monkeypatch):
    """Two prefill ranks and a decode rank of the whole; then a rank of two pulls from the whole."""
    monkeypatch.setattr("llm_datadist._engine.transfer.ways._cores", lambda: 2)  # as on the page
    description = page.left()[0]
    with contextlib.ExitStack() as stack:
        instances = [stack.enter_context(started(number)) for number in (1, 2, 3)]
        *ranks, decode = instances
        for rank in ranks:
            decode.link_peer(rank.listen_address, timeout=10_000)
        kept = [
            register_rank(page, description, instance, tp_size, tp_rank, num_blocks=4)
            for instance, tp_size, tp_rank in zip(instances, (2, 2, 1), (0, 1, 0), strict=True)
        ]
        names = kept[2] | {
            "blocks_of_rank_0": [0, 1],
            "blocks_of_rank_1": [3, 2],
            "own_blocks": [1, 3],
            "num_tokens": 32,
        }
        page.run(names)
        assert kept[2]["tensors"][:, [1, 3]].all()
        assert not kept[2]["tensors"][:, [0, 2]].any()
        register_rank(page, description, ranks[0], 1, 0, num_blocks=128, model_id=1)
        half = register_rank(page, description, decode, 2, 0, num_blocks=128, model_id=1)
        every = list(range(128))
        names = half | {
            "keys": [BlocksCacheKey(1, 1)],
            "src_blocks": [every],
            "dst_blocks": every,
            "num_tokens": 2048,
        }
        page.run(names, count=None)


def register_rank(page, block, instance, tp_size, tp_rank, *, num_blocks, model_id=0):
    """Register the cache of a rank by the block of the page that describes it; its names."""
    shape = (num_blocks, 16, 8 // tp_size, 128)
    tensors = np.zeros((64, *shape), np.uint16)
    if model_id == 0 and tp_size == 2:
        tensors[:] = 1
    names = {
        "DataType": DataType,
        "BlocksCacheKey": lambda cluster_id: BlocksCacheKey(cluster_id, model_id),
        "tp_size": tp_size,
        "tp_rank": tp_rank,
        "desc": CacheDesc(64, shape, DataType.DT_BF16),
        "addrs": [tensor.ctypes.data for tensor in tensors],
        "cluster_id": instance.cluster_id,
        "manager": instance.cache_manager,
        "tensors": tensors,
    }
    page.run_again(block, names)
    return names


def leases(page, tmp_path, monkeypatch):
    with pair() as made:
        ends = []
        page.run(made.names | {"callback": ends.append})
        page.run(made.names | {"callback": ends.append, "cache": made.kept}, count=None)


def memory_faults(page, tmp_path, monkeypatch):
    memory = Pages(2, 4)
    with pair() as made:
        desc = CacheDesc(2, memory.shape[1:], DataType.DT_UINT64)
        cache = made.prefill.cache_manager.register_blocks_cache(
            desc, [memory.at(0, 0), memory.at(1, 0)], BlocksCacheKey(1, 7)
        )
        target = np.zeros(memory.shape, np.uint64)
        own = made.decode.cache_manager.register_tensors(list(target))
        memory.unmap(1, 2)
        pull = (BlocksCacheKey(1, 7), own, [0, 2], [0, 1])
        with pytest.raises(LLMException) as caught:
            made.decode.cache_manager.pull_blocks(*pull)
        assert caught.value.status_code is LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR
        names = made.names | {
            "manager": made.prefill.cache_manager,
            "error": SimpleNamespace(faults=caught.value.faults),
            "fault": caught.value.faults[0],
            "PAGE": PAGE,
            "mmap": lambda start, size, *_: replace(start, size),
            **dict.fromkeys(("PROT_READ", "PROT_WRITE", "MAP_PRIVATE", "MAP_ANONYMOUS"), 0),
            "MAP_FIXED": 0,
        }
        page.run(names, count=None)
        assert names["block_of"](cache, memory.at(1, 2)) == (1, 2)
        assert names["block_of"](cache, 8) is None
        made.decode.cache_manager.pull_blocks(*pull)
    memory.close()


def metrics(page, tmp_path, monkeypatch):
    prometheus_client = pytest.importorskip("prometheus_client")
    page.replaced = {"9108": "0"}
    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    with pair() as made:
        page.run(made.names, count=None)
        assert b"llm_datadist_initialized" in prometheus_client.generate_latest(registry)


def nixl(page, tmp_path, monkeypatch):
    if not HAS_NIXL:
        pytest.skip("no NIXL wheel")
    with pair(transfer_backend="nixl") as made:
        page.run(made.names, count=None)
        assert made.names["facts"]["backend"] == {"host": "nixl", "device": "nixl"}


def tracing(page, tmp_path, monkeypatch):
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    exports = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    providers, exporter = [trace.NoOpTracerProvider()], exports.InMemorySpanExporter()
    page.replaced = {"ConsoleSpanExporter()": "exporter"}
    monkeypatch.setattr(sdk, "TracerProvider", partial(sdk.TracerProvider, shutdown_on_exit=False))
    monkeypatch.setattr(trace, "set_tracer_provider", providers.append)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: providers[-1])
    with pair() as made:
        page.run(made.names | {"exporter": exporter}, count=None)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["pull_blocks"].parent.span_id == spans["fetch the prompt"].context.span_id


def tensors(page, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    sizes = {"num_blocks": 128, "block_tokens": 16, "heads": 2, "head_dim": 16, "layers": 2}
    with pair() as made:
        made.prefill.cache_manager.unregister_cache(made.kept.cache_id)
        for instance in (made.prefill, made.decode):
            names = made.names | sizes | {"torch": torch, "manager": instance.cache_manager}
            page.run_again(page.blocks[0], names)
        page.run(names | {"block_table": np.arange(128)}, count=None)


def testing(page, tmp_path, monkeypatch):
    page.save_programs(tmp_path)
    (block,) = page.left()
    (words,) = commands(block.text)
    assert words[0] == "pytest"
    run_program(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words[1:])
    block.ran = True


def run_program(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def options(page, tmp_path, monkeypatch):
    monkeypatch.setenv("KV_SECRET", "a secret of this test")
    names = {"LLMConfig": LLMConfig, "os": os}
    page.run(names, count=None)
    assert names["config"].generate_options()["llm.SyncKvCacheWaitTime"] == "2000"


def pair_of_programs(page, tmp_path, monkeypatch):
    """Two programs of a tutorial: the first one listens, the second one links and ends."""
    if "import torch" in page.text:
        pytest.importorskip("torch")
    secret = tmp_path / "secret"
    secret.write_text("a secret of this test alone")
    secret.chmod(0o600)
    monkeypatch.setenv("LLM_DATADIST_SECRET_FILE", str(secret))
    page.save_programs(tmp_path)
    (block,) = (block for block in page.left() if block.text.startswith("python "))
    server, client = (words[1:] for words in commands(block.text))
    address = server[-1]
    own = address.replace("10.0.0.5:26000", f"{LOOPBACK}:0").replace("26000", "0")
    with program(tmp_path, server[0], own) as serving:
        listening = serving.stdout.readline().strip()
        port = listening.rpartition(":")[2]
        assert f" listens on {LOOPBACK}:" in listening
        shown = []
        where = address.replace("10.0.0.5", LOOPBACK).replace("26000", port)
        with program(tmp_path, client[0], where) as linking:
            shown += ended(linking)
        block.ran = True
        page.replaced = {
            "--listen 10.0.0.5:26000": f"--listen {LOOPBACK}:0",
            "10.0.0.5:26000": f"{LOOPBACK}:{port}",
        }
        page.run({}, count=None)
        shown += ended(serving)
    expected = "".join(each.text for each in page.blocks if each.language == "text")
    assert shown
    for line in shown:
        assert line in expected or line in page.text or line.startswith("the path was"), line


@contextlib.contextmanager
def program(folder, name, argument):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(folder / name), argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process):
    """Press Enter, wait for the end of a program, and return the lines that it has printed."""
    shown, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0, shown
    return shown.splitlines()


def asyncio_nodes(page, tmp_path, monkeypatch):
    if sys.version_info < (3, 11):
        pytest.skip("the page uses asyncio.timeout")
    directory = str(tmp_path / "nodes")
    page.replaced = {"/run/user/1000/kv-nodes": directory, "timeout(0.5)": "timeout(30)"}
    names = {}
    page.run(names, count=2)

    async def both():
        stopped = asyncio.Event()
        serving = asyncio.create_task(names["prefill"](names["kv"], stopped))
        target = [np.ones_like(tensor) for tensor in names["kv"]]
        await names["decode"](target)
        assert not target[5][[0, 8, 1]].any()
        async with aio.Node("decode-1", directory=directory) as node:
            node.register("kv", target)
            await page.run_async(names | {"prefill": await node.connect("prefill-0")})
        stopped.set()
        await serving

    asyncio.run(both())


RUNS = {
    "docs/howto/benchmark.md": benchmark,
    "docs/howto/containers.md": containers,
    "docs/howto/diagnose.md": diagnose,
    "docs/howto/troubleshooting.md": diagnose,
    "docs/howto/from-ascend.md": from_ascend,
    "docs/howto/layouts.md": layouts,
    "docs/howto/leases.md": leases,
    "docs/howto/memory-faults.md": memory_faults,
    "docs/howto/metrics.md": metrics,
    "docs/howto/nixl.md": nixl,
    "docs/howto/tensors.md": tensors,
    "docs/howto/testing.md": testing,
    "docs/howto/tracing.md": tracing,
    "docs/reference/options.md": options,
    "docs/tutorial/asyncio.md": asyncio_nodes,
    "docs/tutorial/layer-by-layer.md": pair_of_programs,
    "docs/tutorial/torch.md": pair_of_programs,
    "docs/tutorial/two-hosts.md": pair_of_programs,
    "docs/tutorial/two-processes.md": pair_of_programs,
}
#: Skipped where torch is not installed.
NEED_TORCH = ["docs/howto/tensors.md", "docs/tutorial/torch.md"]
