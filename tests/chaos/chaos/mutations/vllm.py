"""Bugs of the vLLM connector: what is offered, transferred, reported and given back when."""

from chaos.mutation import Mutation

_VLLM = "src/llm_datadist/integrations/vllm"
_PULL_SCHEDULER = f"{_VLLM}/scheduler/pull.py"
_PUSH_SCHEDULER = f"{_VLLM}/scheduler/push.py"
_PUSH_CONSUMER = f"{_VLLM}/worker/push_consumer.py"
_PUSH_PRODUCER = f"{_VLLM}/worker/push_producer.py"
_PULL_CONSUMER = f"{_VLLM}/worker/pull_consumer.py"
_PULL_PRODUCER = f"{_VLLM}/worker/pull_producer.py"
_PUSH_PROGRESS = f"{_VLLM}/worker/push_progress.py"
_TESTS = "tests/unit/integrations/vllm"

MUTATIONS = (
    Mutation(
        "reported-before-withdrawn",
        "push mode: a request is reported when its key is withdrawn",
        _PUSH_CONSUMER,
        """        if wait.caches is not None:
            self._worker.withdraw(wait.caches)
        with self._lock:
            self._dispatcher.jobs.pop(order.request_id, None)
        if order.blocks:
            self._count(wait)
            self._reports.add_loaded(order.request_id, order.blocks if wait.problem else ())
""",
        """        with self._lock:
            self._dispatcher.jobs.pop(order.request_id, None)
        if order.blocks:
            self._count(wait)
            self._reports.add_loaded(order.request_id, order.blocks if wait.problem else ())
        if wait.caches is not None:
            self._worker.withdraw(wait.caches)
""",
        tests=f"{_TESTS}/worker/test_push_consumer.py",
    ),
    Mutation(
        "reported-without-receipt",
        "push mode: blocks count when the receipt of this prompt says so",
        _PUSH_CONSUMER,
        'problem = receipt.problem or ("" if fits else "the receipt is of another prompt")',
        "problem = receipt.problem",
        tests=f"{_TESTS}/worker/test_push_consumer.py",
    ),
    Mutation(
        "problems-ignored",
        "push mode: blocks of a request that was given up do not count",
        _PUSH_CONSUMER,
        "self._reports.add_loaded(order.request_id, order.blocks if wait.problem else ())",
        "self._reports.add_loaded(order.request_id, ())",
        tests=f"{_TESTS}/worker/test_push_consumer.py",
    ),
    Mutation(
        "waits-without-end",
        "push mode: a wait ends with hold_ms",
        _PUSH_CONSUMER,
        "        if not wait.is_over and now >= wait.deadline:\n",
        "        if False:\n",
        tests=f"{_TESTS}/worker/test_push_consumer.py",
    ),
    Mutation(
        "early-ticket-is-final",
        "push mode: a producer that does not know the request yet is asked again",
        _PUSH_CONSUMER,
        "            elif error.status_code != LLMStatusCode.LLM_KV_CACHE_NOT_EXIST:\n",
        "            else:\n",
        tests=f"{_TESTS}/worker/test_push_consumer.py",
    ),
    Mutation(
        "given-up-is-pushed",
        "push mode: nothing of a request that was given up is pushed",
        _PUSH_PROGRESS,
        "if self.ticket is None or self.problem or not self.ticket.blocks:",
        "if self.ticket is None or not self.ticket.blocks:",
        tests=f"{_TESTS}/worker/test_push_progress.py",
    ),
    Mutation(
        "half-a-block-is-pushed",
        "push mode: a block is pushed when it is complete",
        _PUSH_PROGRESS,
        "end = -(-num_tokens // block_size) if is_all else num_tokens // block_size",
        "end = -(-num_tokens // block_size)",
        tests=f"{_TESTS}/worker/test_push_progress.py",
    ),
    Mutation(
        "ticket-of-another-prompt",
        "push mode: a ticket for another prompt gets nothing",
        _PUSH_PROGRESS,
        "            ticket.prompt == self.order.prompt\n            and 0",
        "            0",
        tests=f"{_TESTS}/worker/test_push_progress.py",
    ),
    Mutation(
        "blocks-named-twice",
        "push mode: a ticket names each block once",
        _PUSH_PROGRESS,
        "            and len(set(ticket.blocks)) == len(ticket.blocks)\n",
        "",
        tests=f"{_TESTS}/worker/test_push_progress.py {_TESTS}/worker/test_push_producer.py",
    ),
    Mutation(
        "sent-before-the-receipt",
        "push mode: vLLM gets blocks back when nothing reads them any more",
        _PUSH_PRODUCER,
        '        if is_over:\n            self._send_receipt(progress)\n            with self._lock:\n                self._end(progress, "given_up" if progress.problem else "pushed")\n',
        '        if is_over:\n            with self._lock:\n                self._end(progress, "given_up" if progress.problem else "pushed")\n            self._send_receipt(progress)\n',
        tests=f"{_TESTS}/worker/test_push_producer.py",
    ),
    Mutation(
        "held-for-ever",
        "push mode: blocks come back when no ticket comes in time",
        _PUSH_PRODUCER,
        "elif progress.deadline is not None and progress.deadline <= time.monotonic():",
        "elif False:",
        tests=f"{_TESTS}/worker/test_push_producer.py",
    ),
    Mutation(
        "every-copy-of-a-head-is-pushed",
        "push mode: of ranks with the same heads one pushes",
        _PUSH_PRODUCER,
        "                repeated |= own.repeated(rank)\n",
        "                own.repeated(rank)\n",
        tests=f"{_TESTS}/worker/test_push_producer.py",
    ),
    Mutation(
        "sent-after-the-first-worker",
        "push mode: blocks are kept until every worker of the consumer has them",
        _PUSH_PRODUCER,
        "        if progress.is_finished and not others:\n",
        "        if progress.is_finished:\n",
        tests=f"{_TESTS}/worker/test_push_producer.py",
    ),
    Mutation(
        "one-receipt-is-enough",
        "push mode: blocks count when every source has sent its receipt",
        _PUSH_CONSUMER,
        "if problem or len(wait.receipts) == len(wait.sources):",
        "if True:",
        tests=f"{_TESTS}/worker/test_push_consumer.py",
    ),
    Mutation(
        "pushes-of-all-layers",
        "push mode: a layer is pushed when the model has computed it",
        _PUSH_PRODUCER,
        "                for part, tensor in tensors:\n                    progress.computed[part][tensor] = progress.scheduled\n",
        "                for computed in progress.computed:\n                    computed[:] = [progress.scheduled] * len(computed)\n",
        tests=f"{_TESTS}/worker/test_push_producer.py",
    ),
    Mutation(
        "given-back-before-withdrawn",
        "pull mode: vLLM gets blocks back when their key is withdrawn",
        _PULL_PRODUCER,
        """        self._worker.withdraw(published.caches)
        with self._wake:
            self._published.pop(published.request_id, None)
        self._reports.count_released(published.reason)
        self._reports.add_sent(published.request_id)
""",
        """        self._reports.add_sent(published.request_id)
        self._worker.withdraw(published.caches)
        with self._wake:
            self._published.pop(published.request_id, None)
""",
        tests=f"{_TESTS}/worker/test_pull_producer.py",
    ),
    Mutation(
        "leased-blocks-are-taken-back",
        "pull mode: blocks that a consumer is fetching are kept",
        _PULL_PRODUCER,
        "            if self._worker.cache_manager.leased_blocks(cache):\n",
        "            if False:\n",
        tests=f"{_TESTS}/worker/test_pull_producer.py",
    ),
    Mutation(
        "offers-held-for-ever",
        "pull mode: an offer ends with hold_ms",
        _PULL_PRODUCER,
        "deadline is not None and (published.is_fetched or deadline <= time.monotonic())",
        "deadline is not None and published.is_fetched",
        tests=f"{_TESTS}/worker/test_pull_producer.py",
    ),
    Mutation(
        "held-blocks-are-forgotten-at-the-end",
        "an engine that sleeps gets the blocks back that it holds for consumers",
        _PULL_PRODUCER,
        "            if published.deadline is not None:\n                self._reports",
        "            if False:\n                self._reports",
        tests=f"{_TESTS}/test_connector.py",
    ),
    Mutation(
        "one-worker-of-a-consumer-is-enough",
        "pull mode: blocks are kept until every worker of the consumer has fetched them",
        _PULL_PRODUCER,
        "if released and self._readers.have_all(released):",
        "if released:",
        tests=f"{_TESTS}/worker/test_pull_producer.py",
    ),
    Mutation(
        "any-layout-is-read",
        "pull mode: a producer has the layout that follows from its rank",
        _PULL_CONSUMER,
        "                    src_layouts=[source.layouts[pull.part] for _, source in sources],\n",
        "",
        tests=f"{_TESTS}/worker/test_pull_consumer.py",
    ),
    Mutation(
        "any-rank-is-read",
        "pull mode: a producer has the rank that the offer says",
        f"{_VLLM}/worker/compatibility.py",
        "        _TP_SIZE: str(shape.tp_size),\n        _TP_RANK: str(tp_rank),\n",
        "        _TP_SIZE: str(shape.tp_size),\n",
        tests=f"{_TESTS}/worker/test_compatibility.py",
    ),
    Mutation(
        "layers-of-an-offer-count",
        "pull mode: a producer has the layers that the offer says",
        f"{_VLLM}/worker/compatibility.py",
        "        **({} if layers is None else {_LAYERS: span_text(layers)}),\n",
        "",
        tests=f"{_TESTS}/worker/test_compatibility.py",
    ),
    Mutation(
        "stages-may-overlap",
        "the layers of a producer's stages follow each other",
        f"{_VLLM}/kv_transfer_params.py",
        "following is not None and one.stop != following.start:",
        "following is not None and one.stop < following.start:",
        tests=f"{_TESTS}/test_kv_transfer_params.py",
    ),
    Mutation(
        "layers-that-no-stage-has",
        "the stages of a producer hold all layers of a worker",
        f"{_VLLM}/worker/sources.py",
        "known[0].start > own.layers.start or known[-1].stop < own.layers.stop:",
        "known[0].start > own.layers.start:",
        tests=f"{_TESTS}/worker/test_sources.py",
    ),
    Mutation(
        "one-stage-of-a-consumer-is-enough",
        "pull mode: blocks are kept until every layer of them has been fetched",
        f"{_VLLM}/worker/readers.py",
        "            if not held or not _covers(held, own.stage.layers):\n",
        "            if not held:\n",
        tests=f"{_TESTS}/worker/test_pull_producer.py",
    ),
    Mutation(
        "layers-that-the-consumer-lacks-are-awaited",
        "push mode: a worker sends the layers that the consumer's worker holds",
        f"{_VLLM}/worker/push_progress.py",
        "    return first <= layers[tensor] < end\n",
        "    return True\n",
        tests=f"{_TESTS}/worker/test_push_progress.py",
    ),
    Mutation(
        "any-stage-takes-a-ticket",
        "push mode: a ticket is of the worker that its mailbox is for",
        f"{_VLLM}/worker/push_producer.py",
        "            if readers[progress.slot : progress.slot + 1] != [(ticket.stage, ticket.rank)]:\n",
        "            if not readers:\n",
        tests=f"{_TESTS}/worker/test_push_producer.py",
    ),
    Mutation(
        "packed-tokens-are-divided",
        "blocks whose tokens are packed are not divided",
        f"{_VLLM}/rank_layouts.py",
        "    if not part.packing or block_size == part.block_tokens:\n",
        "    if True:\n",
        tests=f"{_TESTS}/test_rank_layouts.py",
    ),
    Mutation(
        "unknown-backends-are-divided",
        "blocks of an attention backend that is not known are not divided",
        f"{_VLLM}/rank_layouts.py",
        "        if not is_latent and not (backend in _PACKING and packing):\n",
        "        if False:\n",
        tests=f"{_TESTS}/test_rank_layouts.py",
    ),
    Mutation(
        "tokens-from-the-start-of-a-block",
        "blocks of another size are read from the first token that is needed",
        f"{_VLLM}/worker/pull_progress.py",
        "        begin = order.src_offset + start * dst_size\n",
        "        begin = start * dst_size\n",
        tests=f"{_TESTS}/worker/test_pull_progress.py",
    ),
    Mutation(
        "failed-loads-count",
        "pull mode: blocks that were not pulled are reported as failed",
        _PULL_CONSUMER,
        "        missing = {*failed, *order.unavailable}\n",
        "        missing = {*order.unavailable}\n",
        tests=f"{_TESTS}/worker/test_pull_consumer.py",
    ),
    Mutation(
        "unavailable-blocks-count",
        "pull mode: blocks that the offer does not have are reported as failed",
        _PULL_CONSUMER,
        "        missing = {*failed, *order.unavailable}\n",
        "        missing = {*failed}\n",
        tests=f"{_TESTS}/worker/test_pull_consumer.py",
    ),
    Mutation(
        "abandoned-loads-go-on",
        "pull mode: a load that was abandoned ends soon",
        _PULL_CONSUMER,
        "while progress.pulls and not abandoned.is_set():",
        "while progress.pulls:",
        tests=f"{_TESTS}/worker/test_pull_consumer.py",
    ),
    Mutation(
        "loads-without-deadline",
        "pull mode: a load ends by its time limit",
        _PULL_CONSUMER,
        "                if time.monotonic() > deadline:\n",
        "                if False:\n",
        tests=f"{_TESTS}/worker/test_pull_consumer.py",
    ),
    Mutation(
        "prefix-beyond-the-fault",
        "pull mode: only blocks before the first fault count",
        f"{_VLLM}/worker/pull_progress.py",
        "    return min(places, default=0)\n",
        "    return max(places, default=0)\n",
        tests=f"{_TESTS}/worker/test_pull_progress.py",
    ),
    Mutation(
        "last-token-is-loaded",
        "the prompt's last token is computed by the consumer",
        _PULL_SCHEDULER,
        "min(offered.offer.num_tokens, request.num_prompt_tokens - 1)",
        "min(offered.offer.num_tokens, request.num_prompt_tokens)",
        tests=f"{_TESTS}/scheduler/test_pull.py",
    ),
    Mutation(
        "offer-of-another-prompt",
        "an offer of another prompt is not used",
        _PULL_SCHEDULER,
        "        if digest is None or digest != offer.prompt:\n",
        "        if digest is None:\n",
        tests=f"{_TESTS}/scheduler/test_pull.py",
    ),
    Mutation(
        "offer-with-too-few-blocks",
        "an offer has blocks for all of its tokens",
        _PULL_SCHEDULER,
        "            if len(blocks) * block_size < offer.num_tokens:\n",
        "            if not blocks:\n",
        tests=f"{_TESTS}/scheduler/test_pull.py",
    ),
    Mutation(
        "aborted-prompt-is-offered",
        "a prompt that was not prefilled to its end is not offered",
        _PULL_SCHEDULER,
        "is_usable = is_prefilled(request) and num_tokens > 1",
        "is_usable = num_tokens > 1",
        tests=f"{_TESTS}/scheduler/test_pull.py",
    ),
    Mutation(
        "unused-offer-is-kept",
        "an offer that is not needed is given back",
        _PULL_SCHEDULER,
        "            self._orders.dismiss.append(offered.offer)\n            return\n        self._loading",
        "            return\n        self._loading",
        tests=f"{_TESTS}/scheduler/test_pull.py",
    ),
    Mutation(
        "null-blocks-are-loaded",
        "placeholders of blocks are not loaded",
        _PULL_SCHEDULER,
        "needed = [(src, dst) for src, dst in pairs if dst != _NULL_BLOCK]",
        "needed = pairs",
        tests=f"{_TESTS}/scheduler/test_pull.py",
    ),
    Mutation(
        "preempted-prefill-is-pushed",
        "a prefill whose blocks were taken away is given up",
        _PUSH_SCHEDULER,
        "            self._give_up(request_id, _PREEMPTED)\n        for new",
        "            pass\n        for new",
        tests=f"{_TESTS}/scheduler/test_push.py",
    ),
    Mutation(
        "short-prefill-is-finished",
        "a prefill that did not reach the prompt's end is given up",
        _PUSH_SCHEDULER,
        "if not is_prefilled(request) or request.num_computed_tokens < send.num_tokens:",
        "if not is_prefilled(request):",
        tests=f"{_TESTS}/scheduler/test_push.py",
    ),
    Mutation(
        "wrong-rank-size",
        "engines exchange nothing if neither size is a multiple of the other",
        f"{_VLLM}/kv_transfer_params.py",
        "    if max(producers, tp_size) % min(producers, tp_size):\n",
        "    if producers % tp_size:\n",
        tests=f"{_TESTS}/test_kv_transfer_params.py",
    ),
    Mutation(
        "lora-is-no-part-of-the-prompt",
        "a prompt's digest covers all that its KV depends on",
        f"{_VLLM}/kv_transfer_params.py",
        'parts = ["" if lora is None else f"{lora.lora_name}"]',
        'parts = [""]',
        tests=f"{_TESTS}/test_kv_transfer_params.py",
    ),
    Mutation(
        "torn-messages-are-read",
        "a message counts when it has arrived completely",
        f"{_VLLM}/worker/mailbox.py",
        "        if hashlib.sha256(body).digest() != digest:\n            return None\n",
        "",
        tests=f"{_TESTS}/worker/test_mailbox.py",
    ),
    Mutation(
        "any-state-is-loaded",
        "a state is used after the token that it is of, and no other",
        _PULL_SCHEDULER,
        "        if self._state_groups and offer.num_tokens != request.num_prompt_tokens - 1:\n",
        "        if False:\n",
        tests=f"{_TESTS}/scheduler/test_states.py",
    ),
    Mutation(
        "state-after-more-tokens-is-offered",
        "a state is offered if no token was computed after those of the prompt",
        _PULL_SCHEDULER,
        "            is_usable &= request.num_computed_tokens == request.num_prompt_tokens\n",
        "            pass\n",
        tests=f"{_TESTS}/scheduler/test_states.py",
    ),
    Mutation(
        "kv-counts-without-its-state",
        "without its state nothing of a prompt counts",
        _PULL_SCHEDULER,
        "                unavailable += [_NULL_BLOCK]  # the last state: without it nothing is of use\n",
        "                pass\n",
        tests=f"{_TESTS}/scheduler/test_states.py",
    ),
    Mutation(
        "tokens-of-unequal-blocks-at-the-begin",
        "push mode: tokens go to their place within the consumer's block",
        _PUSH_PROGRESS,
        "        return Span(begin - run.start * src_size, dst_blocks, begin % dst_size, end - begin)\n",
        "        return Span(begin - run.start * src_size, dst_blocks, 0, end - begin)\n",
        tests=f"{_TESTS}/worker/test_push_progress.py",
    ),
)
