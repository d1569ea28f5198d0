"""Check the accelerator options against the hardware present."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._devices import cuda
from llm_datadist._errors import LLMStatusCode, fail, invalid
from llm_datadist._types import Placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._backends.base import Backend
    from llm_datadist._options.settings import Config

__all__ = ["check_cuda", "device_memory", "reaches_devices"]

_NOT_ENABLED = LLMStatusCode.LLM_FEATURE_NOT_ENABLED


def check_cuda() -> None:
    """Load the driver for llm.Device "cuda".

    Raises:
        LLMException: LLM_FEATURE_NOT_ENABLED: there is none, or no GPU.
    """
    try:
        cuda.load_driver()
    except cuda.DriverUnavailable as error:
        raise fail(
            _NOT_ENABLED,
            "init",
            f'option llm.Device is "cuda", but {error}',
            'set it to "auto" or "cpu": Placement.DEVICE is host memory then',
        ) from error


def reaches_devices(backend: Backend) -> bool:
    """Whether a backend moves accelerator memory."""
    return "device" in backend.capabilities.placements


def device_memory(
    config: Config, operation: str, addrs: Sequence[int], placement: Placement
) -> int | None:
    """Return the GPU that owns the caller's addresses, None for host memory.

    Raises:
        LLMException: LLM_PARAM_INVALID: several memories, or a GPU's with Placement.HOST;
            LLM_FEATURE_NOT_ENABLED: a GPU's, whose driver fails.
    """
    if config.device == "cpu":
        return None
    try:
        device = cuda.device_of(addrs)
    except ValueError as error:
        raise invalid(operation, f"addrs: {error}", "register one cache for each memory") from error
    except cuda.DriverUnavailable as error:
        raise fail(
            _NOT_ENABLED, operation, f"addrs are a GPU's, but {error}", "see to the GPU's driver"
        ) from error
    if device is not None and config.gpu_copy != "engine":
        cuda.warn_without_kernels(device)
    if device is not None and placement is Placement.HOST:
        raise invalid(
            operation,
            f"the placement is HOST, and the addresses are of GPU {device}",
            "use Placement.DEVICE",
        )
    return device
