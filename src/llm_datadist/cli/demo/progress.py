"""Progress of the demo: bars on a terminal, lines elsewhere, nothing with --json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from llm_datadist.cli.demo import messages as m
from llm_datadist.cli.demo.settings import DemoSettings, request_name

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Self


class ProgressView:
    """Follows the messages of the workers. A context manager around the run.

    Args:
        console: Where to show it.
        settings: The run.
        verbose: Also print each event as a line, with the notes of the workers.
    """

    def __init__(self, console: Console, settings: DemoSettings, *, verbose: bool) -> None:
        self._console = console
        self._settings = settings
        self._lines = verbose or not console.is_terminal
        self._verbose = verbose
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._start_up = self._progress.add_task("starting two processes", total=3, state="")
        self._requests: list[TaskID] = []
        self._reference: TaskID | None = None
        self._left = [settings.max_new_tokens] * len(settings.prompts)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, role: str, message: m.FromWorker) -> None:
        """Show one message of a worker."""
        match message:
            case m.Note(text):
                if self._verbose:
                    self._say(text)
            case m.Ready():
                if role == "reference":
                    self._begin_reference()
                else:
                    self._progress.advance(self._start_up)
            case m.Linked():
                self._begin_requests(message)
            case _ if role == "reference":
                self._follow_reference(message)
            case _:
                self._follow_request(message)

    def _begin_requests(self, linked: m.Linked) -> None:
        self._say(f"prefill and decode processes are linked, backend {linked.backend}")
        if self._verbose:
            self._say(", ".join(f"{name} {fact}" for name, fact in linked.description.items()))
        self._progress.remove_task(self._start_up)
        steps = self._settings.shape.layers + self._settings.max_new_tokens
        for index, prompt in enumerate(self._settings.prompts):
            description = f"{request_name(index)}  {len(prompt):>5} tokens"
            self._requests.append(self._progress.add_task(description, total=steps, state="queued"))

    def _follow_request(self, message: m.FromWorker) -> None:
        match message:
            case m.LayerDone(request, span):
                done, of = span.layer + 1, self._settings.shape.layers
                self._step(request, f"prefill, layer {done} of {of}")
            case m.FaultInjected(request, lost):
                places = ", ".join(f"block {one.block} of tensor {one.tensor}" for one in lost)
                self._say(f"{request_name(request)}: memory goes bad under {places}")
            case m.FaultDetected(request, status, _, lost):
                blocks = ", ".join(str(number) for number in sorted({one.block for one in lost}))
                self._progress.update(self._requests[request], state=f"{status}, blocks {blocks}")
                self._say(f"{request_name(request)}: {status}, blocks {blocks} are lost")
            case m.Repaired(request, _, _, tokens):
                text = f"new pages mapped and remapped, {tokens} tokens recomputed"
                self._progress.update(self._requests[request], state=text)
                self._say(f"{request_name(request)}: {text}")
            case m.Moved(request, num_bytes, source_blocks):
                text = f"{len(source_blocks)} blocks, {num_bytes / 2**20:.1f} MiB, moved"
                self._progress.update(self._requests[request], state=text)
                self._say(f"{request_name(request)}: {text}")
            case m.Token(request):
                self._left[request] -= 1
                new = self._settings.max_new_tokens
                self._step(request, f"decode, token {new - self._left[request]} of {new}")
            case m.Finished(request):
                self._progress.update(self._requests[request], state="done")
                self._say(f"{request_name(request)}: decoded")
            case m.Prefilled(request):
                self._say(f"{request_name(request)}: prefilled")

    def _begin_reference(self) -> None:
        new, count = self._settings.max_new_tokens, len(self._settings.prompts)
        self._say("checking: the same requests, one by one, in one process")
        self._reference = self._progress.add_task(
            "checking in one process", total=new * count, state=""
        )

    def _follow_reference(self, message: m.FromWorker) -> None:
        if self._reference is None:
            return
        if isinstance(message, m.Token):
            self._progress.advance(self._reference)
            self._progress.update(self._reference, state=request_name(message.request))

    def _step(self, request: int, state: str) -> None:
        self._progress.update(self._requests[request], advance=1, state=state)

    def _say(self, text: str) -> None:
        if self._lines:
            self._console.print(f"[dim]{escape(text)}[/dim]", highlight=False)
