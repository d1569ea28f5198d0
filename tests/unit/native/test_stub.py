"""The committed stub says what the module offers."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import llm_datadist
from llm_datadist import _native

REMEDY = "python -m nanobind.stubgen -m llm_datadist._native -o src/llm_datadist/_native.pyi"


def meaning(text):
    """The syntax tree, whatever the formatting, docstrings included."""
    tree = ast.parse(text)
    for place in ast.walk(tree):
        if isinstance(place, ast.Constant) and isinstance(place.value, str):
            place.value = " ".join(inspect.cleandoc(place.value).split())
    return ast.unparse(tree)


def test_the_stub_is_what_the_generator_writes():
    stubgen = pytest.importorskip("nanobind.stubgen")
    generator = stubgen.StubGen(_native)
    generator.put(_native)
    stub = Path(llm_datadist.__file__).with_name("_native.pyi")
    assert meaning(stub.read_text(encoding="utf-8")) == meaning(generator.get()), REMEDY
