"""A prefill and a decode engine of a test, and their commands."""

from __future__ import annotations

import contextlib
import copy

from llm_datadist.testing import PeerGroup
from support.vllm.engines import BLOCK, prompt, serve, transfer_config

START_S = 300
ASK_S = 180
ENV = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
OFFER = {"do_remote_decode": True}


class Engine:
    """One engine, seen from a test."""

    def __init__(self, group, name, model, transfer, **overrides):
        self.peer = group.start(serve, model, transfer, overrides, name=name)

    def started(self):
        assert self.peer.receive(START_S) == "ready"
        return self

    def ask(self, *command):
        self.peer.send(list(command))
        return self.peer.receive(ASK_S)

    def tell(self, *command):
        """Ask, and leave the answer for `answer`."""
        self.peer.send(list(command))

    def answer(self):
        return self.peer.receive(ASK_S)

    def end(self):
        """Shut the engine down, and kill its process, which takes many seconds to exit."""
        if self.peer.exit is None:
            assert self.ask("end") == "ended"
            self.peer.kill()


class Pair:
    """A producer and a consumer."""

    def __init__(self, prefill, decode):
        self.prefill = prefill
        self.decode = decode
        self._workers = None

    def offers(self, prompts, tag=""):
        """Prefill prompts {id: tokens} on the producer; what it offers of each."""
        requests = [[tag + name, tokens, 1, OFFER] for name, tokens in prompts.items()]
        done = self.prefill.ask("generate", requests)
        params = {name: done[tag + name]["params"] for name in prompts}
        for each in params.values():  # with it vLLM counts the producer's cache hits as its own
            (each or {}).pop("remote_prefill_cached_tokens", None)
        return params

    def decoded(self, prompts, offers, num_tokens=12, tag=""):
        """Decode prompts with these offers on the consumer; outputs by id."""
        requests = [
            [tag + name, tokens, num_tokens, offers[name]] for name, tokens in prompts.items()
        ]
        done = self.decode.ask("generate", requests)
        return {name: done[tag + name] for name in prompts}

    def ranks(self):
        """Addresses of the producer's workers, from any of its answers."""
        return self.workers()["ranks"]

    def workers(self):
        """Addresses and block sizes of the producer's workers, from any of its answers."""
        if self._workers is None:
            offer = self.offers({"first": prompt(1, 40)}, "ranks-")["first"]
            self._workers = {name: offer[name] for name in ("ranks", "block_sizes")}
            assert self.prefill.ask("settle", 15)
        return self._workers

    def pushes(self, prompts, num_tokens=12, tag=""):
        """Requests of both engines for these prompts, in push mode."""
        sends, awaits = [], []
        for name, tokens in prompts.items():
            transfer = {"transfer": f"transfer {tag}{name}".ljust(20, ".")}
            meeting = {**transfer, "do_remote_prefill": True, **self.workers()}
            sends.append([tag + name, tokens, 1, {**transfer, **OFFER}])
            awaits.append([tag + name, tokens, num_tokens, meeting])
        return sends, awaits

    def pushed(self, prompts, num_tokens=12, tag=""):
        """Prefill and decode prompts at the same time; the consumer's outputs by id."""
        sends, awaits = self.pushes(prompts, num_tokens, tag)
        self.decode.tell("generate", awaits)
        self.prefill.tell("generate", sends)
        done = self.prefill.answer()
        assert all(done[request[0]]["params"]["transfer"] for request in sends)
        outputs = self.decode.answer()
        return {name: outputs[tag + name] for name in prompts}

    def monolithic(self, prompts, num_tokens=12, engine=None):
        """Tokens of the same prompts on one engine that fetches and caches nothing."""
        engine = engine or self.prefill
        assert engine.ask("reset_prefix_cache")
        requests = [["mono-" + name, tokens, num_tokens, None] for name, tokens in prompts.items()]
        done = engine.ask("generate", requests)
        assert engine.ask("reset_prefix_cache")
        return {name: done["mono-" + name]["tokens"] for name in prompts}

    def reset(self):
        for engine in (self.prefill, self.decode):
            assert engine.ask("settle", 15), "requests or blocks are left"
            assert engine.ask("reset_prefix_cache")


@contextlib.contextmanager
def pair_of(
    model,
    *,
    inproc=True,
    roles=("kv_producer", "kv_consumer"),
    prefill=None,
    decode=None,
    **extra,
):
    """Start two engines with the same extra config, and end them."""
    env = {**ENV, "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if inproc else "1"}
    with PeerGroup(env=env, timeout_s=ASK_S) as group:
        first = Engine(group, "prefill", model, transfer_config(roles[0], **extra), **prefill or {})
        second = Engine(group, "decode", model, transfer_config(roles[1], **extra), **decode or {})
        yield Pair(first.started(), second.started())
        for engine in (first, second):
            engine.end()


def mixed_prompts(seed=0):
    """Prompts around the sizes at which something changes."""
    lengths = [1, 2, 5, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK, 100, 257, 500, 800]
    return {f"p{length}": prompt(seed * 1000 + length, length) for length in lengths}


def tokens_of(outputs):
    return {name: output["tokens"] for name, output in outputs.items()}


def changed(params, **fields):
    """A copy of an offer with other fields."""
    return {**copy.deepcopy(params), **fields}
