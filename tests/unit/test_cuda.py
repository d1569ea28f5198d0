"""The synchronizer of CUDA events, without a GPU: its arguments, and when it gives up."""

import threading

import pytest

from llm_datadist.cuda import EventSynchronizer


@pytest.mark.parametrize("number", [0, -1])
def test_a_cache_has_layers(number):
    with pytest.raises(ValueError, match="num_layers"):
        EventSynchronizer(number)


@pytest.mark.parametrize("after", [None, "stream", 1.0])
def test_a_layer_is_recorded_in_a_stream(after):
    with pytest.raises(TypeError, match="after"):
        EventSynchronizer(2).record(0, after)


def test_a_layer_must_exist():
    with pytest.raises(ValueError, match="layer_index"):
        EventSynchronizer(2).record(2, 0)


def test_without_a_driver_the_reason_is_named():
    with pytest.raises(RuntimeError, match="libcuda"):
        EventSynchronizer(2).record(0, 0)


def test_a_layer_that_is_never_recorded_is_not_complete():
    assert EventSynchronizer(2, timeout_ms=1).synchronize_layer(0, None) is False
    assert EventSynchronizer(2).synchronize_layer(0, 1) is False


def test_an_abort_ends_a_wait():
    synchronizer, found = EventSynchronizer(2), []
    waiting = threading.Thread(target=lambda: found.append(synchronizer.synchronize_layer(0, None)))
    waiting.start()
    synchronizer.abort()
    waiting.join()
    assert found == [False]
