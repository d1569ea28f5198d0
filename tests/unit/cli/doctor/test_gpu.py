"""GPUs: no driver, no device, a driver that fails, and memory that cannot be shared."""

import sys
from pathlib import Path

import pytest

from llm_datadist.cli.doctor.gpu import gpus
from support import fake_cuda

pytestmark = pytest.mark.slow


@pytest.fixture
def stand_in(monkeypatch):
    """The library that stands in for the driver, in child processes; variables make it fail."""
    folder = str(fake_cuda.build().parent)
    monkeypatch.setenv("LD_LIBRARY_PATH", folder, prepend=":")
    return monkeypatch.setenv


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")


@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_gpus(tmp_path):
    (found,) = gpus(tmp_path)
    assert found.state == "ok"
    assert "no NVIDIA GPU" in found.seen


@pytest.mark.usefixtures("no_driver")
def test_device_files_without_a_driver(tmp_path):
    (tmp_path / "nvidia0").touch()
    (found,) = gpus(tmp_path)
    assert found.state == "warning"
    assert "no driver library" in found.seen
    assert "--gpus all" in found.remedy


@pytest.mark.usefixtures("stand_in")
def test_gpus_whose_memory_can_be_shared():
    devices, sharing = gpus()
    assert (devices.state, sharing.state) == ("ok", "ok")
    assert "GPU 0, GPU 1" in devices.seen


def test_a_driver_that_does_not_start(stand_in):
    stand_in("FAKE_CUDA_FAIL", "cuInit:*:999")
    (found,) = gpus()
    assert found.state == "warning"
    assert "cuInit returns 999" in found.seen
    assert "nvidia-smi" in found.remedy


def test_no_gpu_is_visible(stand_in):
    stand_in("FAKE_CUDA_DEVICES", "0")
    (found,) = gpus()
    assert found.state == "warning"
    assert "no GPU visible" in found.seen
    assert "CUDA_VISIBLE_DEVICES" in found.remedy


def test_a_driver_that_crashes(monkeypatch):
    crash = [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]
    monkeypatch.setattr("llm_datadist.cli.doctor.gpu.python", lambda _: crash)
    (found,) = gpus()
    assert found.state == "warning"
    assert "SIGSEGV" in found.seen
    assert "nvidia-smi" in found.remedy


@pytest.mark.parametrize("function", ["cuIpcGetMemHandle", "cuIpcOpenMemHandle_v2", "cuMemAlloc"])
def test_memory_that_cannot_be_shared(stand_in, function):
    stand_in("FAKE_CUDA_FAIL", f"{function.removesuffix('_v2')}:*:2")
    devices, sharing = gpus()
    assert devices.state == "ok"
    assert sharing.state == "warning"
    assert f"GPU 0: {function}" in sharing.seen
    assert "--ipc=host" in sharing.remedy
