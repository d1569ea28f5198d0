"""Benchmarks between hosts: what is offered, and that every byte is checked without a helper."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, DataType
from llm_datadist.cli.bench import remote
from llm_datadist.cli.bench.plan import SWEEP, model_jobs, sweep_jobs
from llm_datadist.cli.bench.presets import preset
from llm_datadist.cli.bench.remote import Remote, fitting, linked, offered, offering
from llm_datadist.cli.bench.work import MIB, Case, address, buffer

LISTEN = "127.0.0.1:0"


@pytest.fixture
def peer():
    with offering(LISTEN, 4 * MIB) as instance:
        yield ":".join(map(str, instance.listen_address))


@pytest.fixture
def contender(peer, monkeypatch):
    monkeypatch.setenv(remote.PEER, peer)
    monkeypatch.setenv(remote.BACKEND, "tcp")
    made = Remote(buffer(2 * MIB))
    yield made
    made.close()


@pytest.mark.slow
def test_every_byte_is_checked(contender):
    case = Case("4 KiB", 4096, MIB)
    contender.check_read(case)
    contender.check_write(case)
    model = preset("deepseek-v2-lite").case(64)
    contender.check_read(model)
    contender.check_write(model)
    assert contender.describe()["backend"]["host"] == "tcp"

    contender.prepare(case)
    contender.instance.cache_manager.push_blocks(
        contender._key(remote._READS, case), contender._cache, [0], [255]
    )
    with pytest.raises(RuntimeError, match="pull 4 KiB: wrong bytes"):
        contender.check_read(case)


def test_what_is_offered(peer):
    with linked(peer) as (instance, cluster_id):
        offers = offered(instance, cluster_id)
    assert {size for size, tensors in offers if tensors == 1} == {s for s in SWEEP if s <= 4 * MIB}
    assert offers[4096, 1].num_blocks == 1024
    model = preset("deepseek-v2-lite")
    assert offers[model.block_bytes, model.tensors].num_blocks == 2

    (job,) = sweep_jobs("hosts", [4096], ["pull"], 60.0)
    assert fitting(job, offers).case.total_bytes == 4 * MIB
    assert fitting(replace(job, case=Case("", 4096, MIB)), offers).case.total_bytes == MIB
    (job,) = sweep_jobs("hosts", [512], ["pull"], 60.0)
    with pytest.raises(ValueError, match=r"--block-size 512: the peer offers blocks of 256 B, 1 K"):
        fitting(job, offers)
    (job,) = model_jobs("hosts", [preset("llama-3.1-70b").with_tp(1)], [16], ["pull"])
    with pytest.raises(ValueError, match=r"TP 1: not offered .* larger --memory"):
        fitting(job, offers)
    (job,) = model_jobs("hosts", [model], [1000], ["pull"])
    with pytest.raises(ValueError, match=r"--prompt 1000: .* takes 30 MiB, more than the peer"):
        fitting(job, offers)


def test_caches_that_serve_a_model_are_never_used(started_peer):
    instance, listen = started_peer
    memory = buffer(8192)
    instance.cache_manager.register_blocks_cache(
        CacheDesc(1, [2, 4096], DataType.DT_INT8), [address(memory)], BlocksCacheKey(1, 0)
    )
    with (
        linked(listen) as (local, cluster_id),
        pytest.raises(ValueError, match="offers nothing: start llm-datadist bench --listen"),
    ):
        offered(local, cluster_id)


@pytest.fixture
def started_peer():
    from support.setup import started

    instance = started(1)
    yield instance, ":".join(map(str, instance.listen_address))
    instance.finalize()


@pytest.mark.slow
def test_a_run_between_two_programs(tmp_path):
    from typer.testing import CliRunner

    from llm_datadist.cli.app import app

    command = [sys.executable, "-m", "llm_datadist.cli", "bench", "--listen", LISTEN]
    file = tmp_path / "run.json"
    with subprocess.Popen(
        [*command, "--memory", "64M"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline().startswith("listening at 127.0.0.1:")
            listen = other.stdout.readline().split()[-1]
            options = ["--connect", listen, "--path", "tcp", "--block-size", "4K", "--seconds", "1"]
            outcome = CliRunner().invoke(app, ["bench", *options, "--json", str(file)])
            other.send_signal(signal.SIGTERM)  # SIGINT may be ignored from the start
            _, errors = other.communicate(timeout=20)
        finally:
            other.kill()
    assert (other.returncode, errors) == (0, "ended\n")
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(file.read_text())
    assert found["peer"] == listen
    assert "hosts: the link moves blocks over tcp" in found["notes"]
    rates = {row["operation"]: row["gbps_median"] for row in found["results"]}
    assert rates["pull"] > 0
    assert rates["push"] > 0


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--listen", LISTEN, "--memory", "1M"], 2, "--memory 1M: give whole MiB, 64M at least"),
        (["--connect", "127.0.0.1:1", "--quick"], 1, "check that the peer listens there"),
        (["--connect", "127.0.0.1:1", "--vs", "nixl"], 2, "--vs compares on one host"),
        (["--connect", "127.0.0.1:1", "--path", "pool"], 2, "--path (with --connect, only one)"),
    ],
)
def test_mistakes_are_named_with_the_remedy(options, status, text):
    from typer.testing import CliRunner

    from llm_datadist.cli.app import app

    outcome = CliRunner().invoke(app, ["bench", *options])
    assert outcome.exit_code == status
    assert text in outcome.stderr
