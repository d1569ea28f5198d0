"""Runs a vLLM engine in a process, and times its connector; needs vLLM."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BLOCK = 32
LAYERS, KV_HEADS, HEAD_DIM = 16, 8, 128
BYTES_PER_TOKEN = LAYERS * 2 * KV_HEADS * HEAD_DIM * 4
LONGEST = 2048
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "NIXL_LOG_LEVEL": "FATAL",
    "UCX_LOG_LEVEL": "fatal",
}


def make_model(folder: str) -> str:
    """Write a Llama with random weights: little to compute, much to move."""
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=KV_HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        vocab_size=997,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


class Clock:
    """Records when a request's blocks were allocated, and when they were filled."""

    def __init__(self, scheduling: Any, worker: Any) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        if scheduling is None:
            return
        allocated, load, finished = (
            scheduling.update_state_after_alloc,
            worker.start_load_kv,
            worker.get_transfer_results,
        )

        def note_allocated(request: Any, blocks: Any, num_external_tokens: int) -> None:
            if num_external_tokens:
                self.began[request.request_id] = time.perf_counter()
            allocated(request, blocks, num_external_tokens)

        def note_load(*args: Any, **kwargs: Any) -> None:
            load(*args, **kwargs)
            for request_id in self.began:  # connectors that load on the spot
                self.ended.setdefault(request_id, time.perf_counter())

        def note_finished(*args: Any, **kwargs: Any) -> Any:
            results = finished(*args, **kwargs)
            for request_id in results.finished_recving:
                self.ended[request_id] = time.perf_counter()
            return results

        scheduling.update_state_after_alloc = note_allocated
        worker.start_load_kv = note_load
        worker.get_transfer_results = note_finished

    def milliseconds(self) -> float | None:
        """From room to bytes for the request that has run; None when nothing was loaded."""
        if not self.began:
            return None
        request_id, began = self.began.popitem()  # by the name that the engine has given it
        ended = self.ended.pop(request_id)
        self.ended.clear()
        return (ended - began) * 1e3


class Engine:
    """Steps an engine while it has requests."""

    def __init__(self, model: str, transfer: dict[str, Any] | None) -> None:
        from vllm import LLM  # noqa: PLC0415
        from vllm.distributed import kv_transfer  # noqa: PLC0415

        self.engine = LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype="float32",
            block_size=BLOCK,
            max_model_len=LONGEST + 64,
            max_num_batched_tokens=LONGEST + 64,
            max_num_seqs=4,
            enforce_eager=True,
            enable_prefix_caching=False,
            num_gpu_blocks_override=3 * LONGEST // BLOCK,
            kv_cache_memory_bytes=4 * LONGEST * BYTES_PER_TOKEN,
            kv_transfer_config=transfer,
        ).llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        worker = kv_transfer.get_kv_transfer_group() if transfer else None
        self.clock = Clock(self.scheduler.connector if transfer else None, worker)

    def run(
        self, request_id: str, tokens: list[int], params: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Run a request for one token."""
        from vllm import SamplingParams  # noqa: PLC0415

        sampling = SamplingParams(
            temperature=0,
            max_tokens=1,
            ignore_eos=True,
            detokenize=False,
            extra_args={"kv_transfer_params": params} if params is not None else None,
        )
        began = time.perf_counter()
        self.engine.add_request(request_id, {"prompt_token_ids": tokens}, sampling)
        while True:
            for output in self.engine.step():
                if output.finished:
                    return {
                        "ttft_ms": (time.perf_counter() - began) * 1e3,
                        "transfer_ms": self.clock.milliseconds(),
                        "token": output.outputs[0].token_ids[0],
                        "params": output.kv_transfer_params,
                    }

    def busy(self) -> bool:
        return self.engine.has_unfinished_requests() or self.scheduler.has_requests()


def serve(
    pipe: Connection, model: str, transfer: dict[str, Any] | None, environ: dict[str, str]
) -> None:
    """Body of the process: answers ("run", ...), ("cpu",) and ("settle",)."""
    os.environ.update(ENVIRONMENT)
    os.environ.update(environ)
    engine = Engine(model, transfer)
    pipe.send("ready")
    while True:
        while not pipe.poll(0 if engine.busy() else None):
            engine.engine.step()
        command, *arguments = pipe.recv()
        if command == "run":
            pipe.send(engine.run(*arguments))
        elif command == "cpu":
            pipe.send(time.process_time())
        elif command == "settle":
            until = time.monotonic() + 10
            while engine.busy() and time.monotonic() < until:
                engine.engine.step()
            pipe.send(not engine.busy())
