"""Set environment variables that a library reads once, when it is loaded."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["defaults_in_environment", "environment_with"]


@contextmanager
def defaults_in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables during the block, except those that are set already."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def environment_with(values: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child with further variables, except those set already."""
    return {**values, **os.environ}
