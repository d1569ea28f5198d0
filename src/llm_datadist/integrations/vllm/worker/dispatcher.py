"""Polls push-mode requests for messages of their peers, and runs their work on a thread pool."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_POLL_S, _LONGEST_POLL_S = 0.001, 0.02
"""Interval of polls; it grows with the time since the last change."""


class _Job(Protocol):
    """One request; it must be polled while a message of the peer is expected."""

    is_busy: bool  # set by the dispatcher

    @property
    def awaits_message(self) -> bool: ...


_AnyJob = TypeVar("_AnyJob", bound=_Job)


class Dispatcher(Generic[_AnyJob]):
    """Polls jobs on one thread and works on due ones on others, on each at most once at a time.

    Args:
        name: For the names of the threads.
        num_threads: Threads that work.
        poll: Returns whether a job is due. Called with `lock` held; may remove the job.
        work: Works on a due job. Called without `lock`; must not raise.

    Attributes:
        lock: Guards the other attributes and the jobs.
        jobs: Request id -> job.
        is_closed: Whether `close` has been called.
    """

    def __init__(
        self,
        name: str,
        num_threads: int,
        poll: Callable[[_AnyJob], bool],
        work: Callable[[_AnyJob], None],
    ) -> None:
        self.lock: threading.Condition = threading.Condition()
        self.jobs: dict[str, _AnyJob] = {}
        self.is_closed: bool = False
        self._poll = poll
        self._work = work
        self._changed_at = time.monotonic()
        self._pool = ThreadPoolExecutor(num_threads, f"llm_datadist-vllm-{name}")
        self._thread = threading.Thread(
            target=self._run, name=f"llm_datadist-vllm-{name}-poll", daemon=True
        )
        self._thread.start()

    def note_change(self) -> None:
        """Poll all jobs now; called with `lock` held after a job has changed or been added."""
        self._changed_at = time.monotonic()
        self.lock.notify_all()

    def close(self) -> list[_AnyJob]:
        """Wait for running work, and forget all jobs; idempotent. Returns the jobs."""
        with self.lock:
            self.is_closed = True
            self.lock.notify_all()
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        left = list(self.jobs.values())
        self.jobs.clear()
        return left

    def _run(self) -> None:
        with self.lock:
            while not self.is_closed:
                for job in list(self.jobs.values()):
                    if not job.is_busy and self._poll(job):
                        job.is_busy = True
                        self._pool.submit(self._run_job, job)
                interval_s: float | None = None
                if any(job.awaits_message for job in self.jobs.values()):
                    quiet_s = time.monotonic() - self._changed_at
                    interval_s = max(_FIRST_POLL_S, min(_LONGEST_POLL_S, quiet_s / 16))
                self.lock.wait(interval_s)

    def _run_job(self, job: _AnyJob) -> None:
        self._work(job)
        with self.lock:
            job.is_busy = False
            self.note_change()
