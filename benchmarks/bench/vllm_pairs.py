"""Disaggregated prefill with stock vLLM: this connector beside those that vLLM ships with."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.timing import Goal
from bench.vllm_engine import LONGEST, make_model, serve
from llm_datadist.cli.bench.timing import Row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LENGTHS = (512, 1024, LONGEST)
IDLE_S = 5.0
DATADIST, DATADIST_TCP, NIXL, EXAMPLE = (
    "llm-datadist",
    "llm-datadist (tcp)",
    "NixlConnector",
    "Example",
)


def _datadist(**extra: Any) -> dict[str, Any]:
    return {
        "kv_connector": "LLMDataDistConnector",
        "kv_connector_module_path": "llm_datadist.integrations.vllm",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }


class Pair:
    """A prefill and a decode engine; stopped outside of its turn."""

    def __init__(self, name: str, model: str, transfer: dict[str, Any] | None) -> None:
        self.name = name
        self.processes = []
        self.pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        for role in ("kv_producer", "kv_consumer"):
            near, far = context.Pipe()
            given = transfer and {**transfer, "kv_role": role}
            environ = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(_free_port())}
            process = context.Process(target=serve, args=(far, model, given, environ), daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(near)

    def wait_ready(self) -> None:
        for pipe in self.pipes:
            assert pipe.poll(300), f"{self.name}: an engine does not start"
            assert pipe.recv() == "ready"

    def ask(self, side: int, *command: Any) -> Any:
        self.pipes[side].send(command)
        assert self.pipes[side].poll(120), f"{self.name}: no answer"
        return self.pipes[side].recv()

    def signal(self, number: int) -> None:
        for process in self.processes:
            os.kill(process.pid or 0, number)

    @contextlib.contextmanager
    def turn(self) -> Any:
        self.signal(signal.SIGCONT)
        try:
            yield self
        finally:
            self.signal(signal.SIGSTOP)

    def transfer(self, tokens: list[int]) -> dict[str, Any]:
        """Prefill on one engine, decode on the other."""
        name = f"{random.getrandbits(64):x}"
        wish = {"do_remote_decode": True, "do_remote_prefill": False}
        first = self.ask(0, "run", name, tokens, wish if self.name != EXAMPLE else None)
        params = first["params"]
        if params:
            params.pop("remote_prefill_cached_tokens", None)
        second = self.ask(1, "run", name, tokens, params)
        assert second["token"] == first["token"], f"{self.name}: another token"
        assert second["transfer_ms"] is not None, f"{self.name}: computed, not transferred"
        return dict(second)

    def idle_percent(self) -> float:
        """Processor time of both engines while they have nothing to do, in % of a core."""
        for side in (0, 1):
            self.ask(side, "settle")
        before = [self.ask(side, "cpu") for side in (0, 1)]
        time.sleep(IDLE_S)
        after = [self.ask(side, "cpu") for side in (0, 1)]
        return (sum(after) - sum(before)) / IDLE_S * 100

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join(10)


class VllmPairs:
    """The comparison; connectors take turns with the same prompts."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.rows: list[Row] = []
        self.goals: list[Goal] = []
        self._folder = tempfile.TemporaryDirectory(prefix="bench-vllm-")
        self._pairs: list[Pair] = []

    def run(self) -> None:
        folder = self._folder.name
        model = make_model(f"{folder}/model")
        contenders: dict[str, dict[str, Any] | None] = {
            DATADIST: _datadist(),
            DATADIST_TCP: _datadist(transfer_backend="tcp"),
            EXAMPLE: {
                "kv_connector": "ExampleConnector",
                "kv_connector_extra_config": {"shared_storage_path": f"{folder}/shared"},
            },
        }
        if find_spec("nixl") is not None:
            contenders[NIXL] = {"kv_connector": "NixlConnector", "kv_buffer_device": "cpu"}
        for name, transfer in contenders.items():
            pair = Pair(name, model, transfer)
            self._pairs.append(pair)
            pair.wait_ready()
            pair.signal(signal.SIGSTOP)
        for length in LENGTHS:
            self._compare(length)
        for pair in self._pairs:
            with pair.turn():
                self.rows.append(Row("idle, both engines", pair.name, "%", [pair.idle_percent()]))

    def _compare(self, length: int) -> None:
        names = [pair.name for pair in self._pairs]
        moved, first = f"transfer of {length} tokens", f"time to first token, {length} tokens"
        transfers = {name: Row(moved, name, "ms") for name in names}
        ttfts = {name: Row(first, name, "ms") for name in names}
        for number in range(-1, self.rounds):  # the first one warms up
            chance = random.Random(length * 1000 + number)
            tokens = [chance.randrange(1, 997) for _ in range(length)]
            for pair in self._pairs:
                with pair.turn():
                    if number < 1:
                        pair.transfer([*tokens[1:], 1 + number % 2])
                    done = pair.transfer(tokens)
                if number >= 0:
                    transfers[pair.name].values.append(done["transfer_ms"])
                    ttfts[pair.name].values.append(done["ttft_ms"])
        self.rows += [*transfers.values(), *ttfts.values()]
        for rival in (NIXL, EXAMPLE):
            if rival in names:
                if rival == NIXL:
                    self.goals.append(Goal(moved, DATADIST, rival, 2.0))
                self.goals.append(Goal(first, DATADIST, rival, 1.0))

    def close(self) -> None:
        for pair in self._pairs:
            pair.close()
        self._folder.cleanup()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
