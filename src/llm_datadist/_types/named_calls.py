"""Exceptions about arguments name the public call that raises them.

The checks of arguments know the argument and its remedy, but not the call. So the public functions
and classes are decorated here, and what they raise begins with their name:
`pull_blocks: src_blocks must be ...`. If one public call makes another, the outer one is named.

Source: api.md 1.1.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["names_call", "names_calls"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C", bound=type)

_KINDS: Final = (TypeError, ValueError, AttributeError)
_PACKAGE: Final = "llm_datadist"
_NAMED: Final = "__llm_datadist_call__"


def names_call(call: Callable[_P, _R], name: str | None = None) -> Callable[_P, _R]:
    """Make a public function or coroutine function name itself in what it raises.

    Args:
        call: The function.
        name: What it is called in texts; None = its own name.
    """
    shown = name or call.__name__
    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def awaited(*args: _P.args, **kwargs: _P.kwargs) -> Any:  # noqa: ANN401 - as the call
            try:
                return await call(*args, **kwargs)
            except _KINDS as error:
                _name(error, shown)
                raise

        return cast("Callable[_P, _R]", awaited)

    @functools.wraps(call)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return call(*args, **kwargs)
        except _KINDS as error:
            _name(error, shown)
            raise

    return called


def names_calls(kind: _C) -> _C:
    """Make the constructor and the public methods of a class name themselves in what they raise.

    Methods that private bases contribute get the name of the class as well, for Python's own errors
    about arguments, and for help.
    """
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] != _PACKAGE:
            continue
        for name, member in list(vars(base).items()):
            if name.startswith("_") and (name != "__init__" or base is not kind):
                continue
            binding = type(member) if isinstance(member, (classmethod, staticmethod)) else None
            call = member if binding is None else member.__func__
            if not inspect.isfunction(call):
                continue
            call.__qualname__ = f"{kind.__name__}.{name}"
            named = names_call(call, kind.__name__ if name == "__init__" else None)
            setattr(base, name, named if binding is None else binding(named))
    return kind


def _name(error: Exception, call: str) -> None:
    """Put the name of a call before the text, unless the text has it."""
    if type(error) not in _KINDS or len(error.args) != 1 or not isinstance(error.args[0], str):
        return  # of another library, or of the program
    text, inner = error.args[0], error.__dict__.get(_NAMED)
    if inner is not None:
        text = text.removeprefix(f"{inner}: ")
    elif text.startswith(call) or f"{call}." in text or f"{call}(" in text:
        return
    error.args = (f"{call}: {text}",)
    error.__dict__[_NAMED] = call
