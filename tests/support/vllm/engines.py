"""vLLM engines as peers of a test: a tiny model, and a body that executes commands."""

from __future__ import annotations

import contextlib
import os
import random
import time

from llm_datadist.testing import FaultPolicy, FaultRule, inject_faults

BLOCK = 32
MODULE = "llm_datadist.integrations.vllm"
MAX_MODEL_LEN = 1024
_LOOK_S = 0.002


def make_model(folder, *, layers=2, kv_heads=2, head_dim=32, hidden=64, vocab=997, seed=5):
    """Write a Llama with random weights, large enough that tokens depend on the whole context."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2 * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def make_gemma(folder):
    """Write a model with a window of 64 tokens in every second layer: two KV cache groups."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(6)
    config = Gemma3TextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=997,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    Gemma3ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def make_deepseek(folder):
    """Write a model with latents (MLA), of the only size that vLLM for CPU has."""
    import torch
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    torch.manual_seed(7)
    config = DeepseekV2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        vocab_size=997,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    DeepseekV2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def make_granite(folder):
    """Write a model with states (Mamba 2) and attention in turn: two KV cache groups."""
    import torch
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    torch.manual_seed(8)
    config = GraniteMoeHybridConfig(
        hidden_size=64,
        intermediate_size=128,
        shared_intermediate_size=128,
        num_hidden_layers=4,
        layer_types=["mamba", "attention"] * 2,
        num_attention_heads=2,
        num_key_value_heads=2,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_n_groups=1,
        num_local_experts=0,
        num_experts_per_tok=0,
        position_embedding_type="rope",
        vocab_size=997,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    GraniteMoeHybridForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def prompt(seed, length, vocab=997):
    """Token ids of a prompt."""
    return [random.Random(seed).randrange(1, vocab) for _ in range(length)]


def transfer_config(role, **extra):
    """kv_transfer_config of an engine with the connector."""
    return {
        "kv_connector": "LLMDataDistConnector",
        "kv_connector_module_path": MODULE,
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }


def serve(member, model, transfer, overrides):
    """Body: one engine. Answers each command of the group with what it did."""
    os.environ.update(overrides.pop("environ", {}))
    from vllm import LLM

    settings = {
        "model": model,
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "block_size": BLOCK,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 16,
        "enforce_eager": True,
        "num_gpu_blocks_override": 400,
        "kv_cache_memory_bytes": 256 << 20,
        **overrides,
    }
    llm = LLM(**settings, kv_transfer_config=transfer)
    if settings.get("pipeline_parallel_size", 1) > 1:
        llm.collective_rpc(_make_stage_inputs)
    engine = _Engine(llm.llm_engine)
    member.send("ready")
    while True:
        command = engine.next_command(member)
        if command[0] == "end":
            break
        member.send(getattr(engine, command[0])(*command[1:]))
    llm.llm_engine.engine_core.shutdown()
    member.send("ended")
    member.wait_end()


def _make_stage_inputs(worker):
    """Make what a stage receives from the one before; vLLM does so only when it compiles."""
    runner = worker.model_runner
    runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
        batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
    )


class _Engine:
    """Commands of one engine; it is stepped while it has work."""

    def __init__(self, engine):
        self.engine = engine
        self.is_inproc = hasattr(engine.engine_core, "engine_core")
        self.done = {}
        self.began = {}
        self._faults = contextlib.ExitStack()

    @property
    def scheduler(self):
        return self.engine.engine_core.engine_core.scheduler

    def busy(self):
        return self.engine.has_unfinished_requests() or (
            self.is_inproc and self.scheduler.has_requests()
        )

    def next_command(self, local):
        while True:
            busy = self.busy()
            try:
                return local.receive(_LOOK_S if busy else 600)
            except TimeoutError:
                if not busy:
                    raise
                self.step()

    def step(self):
        for output in self.engine.step():
            if output.finished:
                self.done[output.request_id] = {
                    "tokens": list(output.outputs[0].token_ids),
                    "reason": output.outputs[0].finish_reason,
                    "params": output.kv_transfer_params,
                    "seconds": time.monotonic() - self.began.get(output.request_id, 0),
                    "cached": output.num_cached_tokens,
                }

    def add(self, request_id, tokens, max_tokens, params):
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args={"kv_transfer_params": params} if params is not None else None,
        )
        self.began[request_id] = time.monotonic()
        self.engine.add_request(request_id, {"prompt_token_ids": tokens}, sampling)
        return True

    def generate(self, requests):
        """Run requests (id, tokens, max_tokens, params) to their ends."""
        for request in requests:
            self.add(*request)
        return self.results([request[0] for request in requests])

    def results(self, request_ids):
        """Step until these have ended; their outputs by id."""
        until = time.monotonic() + 120
        while not all(request_id in self.done for request_id in request_ids):
            assert time.monotonic() < until, f"requests do not end: {request_ids}"
            self.step()
        return {request_id: self.done.pop(request_id) for request_id in request_ids}

    def steps(self, seconds):
        """Step for a time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.step()
        return True

    def abort(self, request_ids):
        self.engine.abort_request(request_ids)
        return True

    def corrupt(self, pulls):
        """Change one byte of each of these pulls, counted from 1."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        instance = get_kv_transfer_group()._worker._instance.instance
        policy = FaultPolicy([FaultRule("corrupt", nth=nth, write=False) for nth in pulls], seed=3)
        self._policy = self._faults.enter_context(inject_faults(instance, policy))
        return True

    def mend(self):
        """End the corruption; return how many pulls were changed."""
        self._faults.close()
        return len(self._policy.decisions)

    def reset_prefix_cache(self):
        return self.engine.reset_prefix_cache()

    def free_blocks(self):
        """Free blocks; in-process engines only."""
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def settle(self, seconds):
        """Step until nothing is pending or the time is over; return whether nothing is."""
        until = time.monotonic() + seconds
        while self.busy() and time.monotonic() < until:
            self.step()
        return not self.busy()
