"""Runs the demo: starts the workers, routes requests between them, and collects the results.

This process is the router of a disaggregated deployment: it sends prompts to the
prefill process, block ids and first tokens to the decode process, and touches no KV cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import msgspec

from llm_datadist.cli.demo import messages as m
from llm_datadist.cli.demo.fault_recovery import FaultRecovery
from llm_datadist.cli.demo.paged_kv import blocks_for
from llm_datadist.cli.demo.processes import Worker, WorkerSelector
from llm_datadist.cli.demo.results import DemoResult, FaultResult, RequestResult, Span, span
from llm_datadist.cli.demo.settings import DemoError, DemoSettings, request_name

Watch = Callable[[str, m.FromWorker], None]


class _Track(msgspec.Struct):
    """Results of one request so far."""

    prompt: list[int]
    layers: list[m.LayerSpan] = []
    moved: m.Moved | None = None
    token_ns: list[int] = []
    finished: m.Finished | None = None
    reference: m.Finished | None = None


class Router:
    """Router and workers of one run.

    Args:
        settings: What to run.
        watch: Called with the role and each message of a worker, to show progress.
    """

    def __init__(self, settings: DemoSettings, watch: Watch) -> None:
        self._settings = settings
        self._watch = watch
        self._tracks = [_Track(prompt) for prompt in settings.prompts]
        self._recovery = FaultRecovery()
        self._linked = m.Linked("", {})
        self._residents_intact = False

    def run(self) -> DemoResult:
        """Serve all requests with two processes, then check them with one.

        Raises:
            DemoError: A worker ended, failed or stopped responding.
        """
        began = time.monotonic_ns()
        with (
            Worker(self._setup("prefill")) as prefill,
            Worker(self._setup("decode")) as decode,
            WorkerSelector([prefill, decode]) as board,
        ):
            self._linked = self._link(board, decode)
            submitted = time.monotonic_ns()
            self._serve(board, prefill, decode)
            served = time.monotonic_ns()
            self._residents_intact = self._stop(board, [prefill, decode])
        checked = time.monotonic_ns()
        with Worker(self._setup("reference")) as worker, WorkerSelector([worker]) as board:
            self._refer(board, worker)
            self._stop(board, [worker])
        ended = time.monotonic_ns()
        return self._result(
            zero=submitted,
            start_up_ms=(submitted - began) / 1e6,
            serving_ms=(served - submitted) / 1e6,
            reference_ms=(ended - checked) / 1e6,
        )

    def _setup(self, role: m.Role) -> m.Setup:
        settings = self._settings
        shared = settings.prompt_blocks
        num_blocks = {
            "prefill": shared,
            "decode": shared + settings.whole_blocks,
            "reference": settings.whole_blocks,
        }
        return m.Setup(
            role=role,
            shape=settings.shape,
            seed=settings.seed,
            mode=settings.mode,
            backend=settings.backend,
            block_size=settings.block_size,
            num_blocks=num_blocks[role],
            resident_blocks=shared if role == "decode" else 0,
            slots=len(settings.prompts),
            max_new_tokens=settings.max_new_tokens,
            corrupt_block=settings.corrupt_block,
            fault_in=settings.fault_in,
        )

    def _link(self, board: WorkerSelector, decode: Worker) -> m.Linked:
        waiting = {"prefill", "decode"}
        address: m.Ready | None = None
        while True:
            for worker, message in self._receive(board):
                match message:
                    case m.Ready():
                        waiting.discard(worker.role)
                        address = message if worker.role == "prefill" else address
                        if not waiting and address is not None:
                            decode.send(m.LinkTo(address.ip, address.port))
                    case m.Linked():
                        return message

    def _serve(self, board: WorkerSelector, prefill: Worker, decode: Worker) -> None:
        for request, track in enumerate(self._tracks):
            decode.send(m.Reserve(request, len(track.prompt)))
            if self._settings.mode == "pull":
                prefill.send(m.Submit(request, track.prompt))
        while any(track.finished is None or track.moved is None for track in self._tracks):
            for _, message in self._receive(board):
                self._route(message, prefill, decode)

    def _route(self, message: m.FromWorker, prefill: Worker, decode: Worker) -> None:
        match message:
            case m.Reserved(request, blocks):
                if self._settings.mode == "layerwise":
                    prefill.send(m.Submit(request, self._tracks[request].prompt, blocks))
            case m.LayerDone(request, layer_span):
                self._tracks[request].layers.append(layer_span)
            case m.Prefilled(request, first_token, source_blocks):
                decode.send(m.StartDecode(request, first_token, source_blocks))
            case m.FaultInjected() | m.FaultDetected() | m.Repaired() | m.Resumed():
                self._recovery.follow(message, prefill, decode)
            case m.Moved(request):
                self._tracks[request].moved = message
                prefill.send(m.Release(request))
            case m.Token(request, _, at_ns):
                self._tracks[request].token_ns.append(at_ns)
            case m.Finished(request):
                self._tracks[request].finished = message

    def _refer(self, board: WorkerSelector, worker: Worker) -> None:
        for request, track in enumerate(self._tracks):
            worker.send(m.Submit(request, track.prompt))
        while any(track.reference is None for track in self._tracks):
            for _, message in self._receive(board):
                if isinstance(message, m.Finished):
                    self._tracks[message.request].reference = message

    def _stop(self, board: WorkerSelector, workers: list[Worker]) -> bool:
        for worker in workers:
            worker.send(m.Stop())
        intact = True
        while workers:
            for worker, message in self._receive(board):
                if isinstance(message, m.Stopped):
                    intact = intact and message.residents_intact
                    board.drop(worker)
                    if written := worker.output():
                        self._watch(worker.role, m.Note(f"{worker.role} wrote: {written}"))
                    workers.remove(worker)
        return intact

    def _receive(self, board: WorkerSelector) -> list[tuple[Worker, m.FromWorker]]:
        received = board.receive()
        for worker, message in received:
            self._watch(worker.role, message)
        return received

    def _result(
        self, *, zero: int, start_up_ms: float, serving_ms: float, reference_ms: float
    ) -> DemoResult:
        settings = self._settings
        requests = [self._request(index, zero) for index in range(len(self._tracks))]
        try:
            installed = version("llm-datadist")
        except PackageNotFoundError:
            installed = "unknown"
        return DemoResult(
            version=installed,
            mode=settings.mode,
            backend=self._linked.backend,
            link=self._linked.description,
            seed=settings.seed,
            block_size=settings.block_size,
            model=settings.shape,
            tokens_equal=all(request.tokens_equal for request in requests),
            logits_equal=all(request.logits_equal for request in requests),
            residents_intact=self._residents_intact,
            start_up_ms=start_up_ms,
            serving_ms=serving_ms,
            reference_ms=reference_ms,
            requests=requests,
            fault=self._fault(),
            timeline=self._timeline(zero),
        )

    def _fault(self) -> FaultResult | None:
        victim = self._settings.fault_in
        if victim is None:
            return None
        others = [
            at_ns
            for index, track in enumerate(self._tracks)
            if index != victim
            for at_ns in track.token_ns
        ]
        prompt_blocks = blocks_for(len(self._tracks[victim].prompt), self._settings.block_size)
        return self._recovery.result(request_name(victim), prompt_blocks, others)

    def _request(self, index: int, zero: int) -> RequestResult:
        track = self._tracks[index]
        moved, finished, reference = track.moved, track.finished, track.reference
        if moved is None or finished is None or reference is None:
            raise DemoError(f"request {request_name(index)} was never completed")
        transfer_ns = sum(s.end_ns - s.start_ns for s in moved.spans)
        prefilled_ns = track.layers[-1].end_ns
        exposed_ns = sum(max(0, s.end_ns - max(s.start_ns, prefilled_ns)) for s in moved.spans)
        decode_ns = track.token_ns[-1] - track.token_ns[0]
        return RequestResult(
            name=request_name(index),
            prompt_tokens=len(track.prompt),
            kv_bytes=moved.num_bytes,
            blocks=len(moved.target_blocks),
            source_blocks=moved.source_blocks,
            target_blocks=moved.target_blocks,
            prefill_ms=(prefilled_ns - track.layers[0].start_ns) / 1e6,
            transfer_ms=transfer_ns / 1e6,
            exposed_ms=exposed_ns / 1e6,
            gb_per_s=moved.num_bytes / max(1, transfer_ns),
            time_to_first_token_ms=(track.token_ns[0] - zero) / 1e6,
            ms_per_token=decode_ns / 1e6 / (len(track.token_ns) - 1),
            tokens=finished.tokens,
            reference_tokens=reference.tokens,
            tokens_equal=finished.tokens == reference.tokens,
            logits_equal=finished.digest == reference.digest,
        )

    def _timeline(self, zero: int) -> list[Span]:
        spans = []
        for index, track in enumerate(self._tracks):
            for done in track.layers:
                spans.append(span(index, "compute", done.layer, done.start_ns, done.end_ns, zero))
            if track.moved is not None:
                for s in track.moved.spans:
                    spans.append(span(index, "transfer", s.layer, s.start_ns, s.end_ns, zero))
            first, last = track.token_ns[0], track.token_ns[-1]
            spans.append(span(index, "decode", m.ALL_LAYERS, first, last, zero))
        return spans
