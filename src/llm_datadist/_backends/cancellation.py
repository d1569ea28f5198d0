"""Ends the transfers of one thread from another, as a signal handler that raises ends a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from llm_datadist import _native

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Canceled", "Cancellation", "check_canceled"]

check_canceled = _native.check_canceled


class Canceled(BaseException):
    """The transfer was canceled; nothing of it lands any more."""


@final
class Cancellation:
    """The transfers of one thread that can be canceled, as a context manager of that thread.

    A canceled transfer raises `Canceled` as soon as the data path can stop it: lanes and batches
    on the same host within 100 ms, others by the deadline of the call. Bytes that were moved stay
    moved, and nothing lands any more.
    """

    def __init__(self) -> None:
        self._native = _native.Cancellation(Canceled)

    def cancel(self) -> None:
        """End the transfer that runs, and all later ones. Callable on any thread; never blocks."""
        self._native.cancel()

    def __enter__(self) -> Cancellation:
        if self._native.canceled:
            raise Canceled
        self._native.enter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._native.exit()
