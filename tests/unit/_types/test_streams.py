"""What `after` may name: streams and events of several packages, by their attributes."""

from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist._types.streams import check_after


class Protocol:
    """As the stream protocol of CUDA's Python packages has it."""

    def __init__(self, found):
        self.found = found

    def __cuda_stream__(self):
        return self.found


class Attribute:
    __cuda_stream__ = (0, 9)


def torch_like(**attributes):
    return SimpleNamespace(device=SimpleNamespace(index=1), **attributes)


def test_none_is_none():
    assert check_after(None) is None


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (7, ("stream", 7, None)),
        (0, ("stream", 0, None)),
        (torch_like(cuda_stream=5), ("stream", 5, 1)),
        (torch_like(cuda_event=6), ("event", 6, 1)),
        (Protocol((0, 8)), ("stream", 8, None)),
        (Attribute(), ("stream", 9, None)),
    ],
)
def test_streams_and_events(after, expected):
    point = check_after(after)
    assert point[:3] == expected
    assert point.owner is after


@pytest.mark.parametrize(
    "after",
    [True, 1.5, "7", b"7", object(), [7], np.float32(1), Protocol(7), Protocol((1, 8)),
     Protocol((0, "8")), SimpleNamespace(cuda_stream="5")],
)  # fmt: skip
def test_anything_else_is_a_type_error(after):
    with pytest.raises(TypeError, match="after"):
        check_after(after)


def test_an_event_that_was_never_recorded_is_refused():
    """A driver would say that it is complete."""
    with pytest.raises(ValueError, match="never recorded"):
        check_after(torch_like(cuda_event=0))


@pytest.mark.parametrize("after", [-1, 2**64])
def test_a_handle_has_64_bits(after):
    with pytest.raises(ValueError, match="after"):
        check_after(after)
