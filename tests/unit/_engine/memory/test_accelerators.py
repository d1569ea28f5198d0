"""The accelerator options against the hardware that there is."""

import pytest

from llm_datadist import LLMException, LLMStatusCode, Placement
from llm_datadist._devices import cuda
from llm_datadist._engine.memory.accelerators import check_cuda, device_memory
from llm_datadist._options.settings import Config

S = LLMStatusCode


def fails(error):
    def call(*arguments):
        raise error

    return call


def refused(status, words, call, *arguments):
    with pytest.raises(LLMException, match=words) as caught:
        call(*arguments)
    assert caught.value.status_code is status


def test_cuda_needs_a_driver(monkeypatch):
    monkeypatch.setattr(cuda, "load_driver", lambda: None)
    check_cuda()
    monkeypatch.setattr(cuda, "load_driver", fails(cuda.DriverUnavailable("no libcuda")))
    words = r'llm\.Device is "cuda", but no libcuda; set it to "auto"'
    refused(S.LLM_FEATURE_NOT_ENABLED, words, check_cuda)


@pytest.mark.parametrize("device", [None, 3])
def test_memory_is_where_the_driver_says(monkeypatch, device):
    monkeypatch.setattr(cuda, "device_of", lambda addrs: device)
    monkeypatch.setattr(cuda, "warn_without_kernels", lambda device: None)
    auto, addrs = Config(device="auto"), [4096]
    assert device_memory(auto, "register_cache", addrs, Placement.DEVICE) == device
    assert device_memory(Config(device="cpu"), "register_cache", addrs, Placement.DEVICE) is None
    call = (device_memory, auto, "register_cache", addrs, Placement.HOST)
    if device is None:
        assert call[0](*call[1:]) is None
    else:
        refused(S.LLM_PARAM_INVALID, "HOST, and the addresses are of GPU 3", *call)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("of GPU 0 and of GPU 1"), S.LLM_PARAM_INVALID, "one cache for each memory"),
        (cuda.DriverUnavailable("it failed"), S.LLM_FEATURE_NOT_ENABLED, "the GPU's driver"),
    ],
)
def test_addresses_of_no_one_memory(monkeypatch, error, status, words):
    monkeypatch.setattr(cuda, "device_of", fails(error))
    arguments = (Config(device="auto"), "register_cache", [4096], Placement.DEVICE)
    refused(status, f"{error}.*{words}", device_memory, *arguments)
