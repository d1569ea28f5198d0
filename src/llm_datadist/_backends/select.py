"""Makes the backends of an instance, and chooses one for each link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.gpu import GpuBackend
from llm_datadist._backends.host import HostBackend
from llm_datadist._backends.nixl.bindings import has_rdma
from llm_datadist._backends.tcp import TcpBackend, TcpChannel

if TYPE_CHECKING:
    from llm_datadist._backends.base import Backend, Channel
    from llm_datadist._backends.lanes import LinkLanes
    from llm_datadist._backends.nixl.backend import NixlBackend
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import PeerEndpoint
    from llm_datadist._devices.cpu import PoolMemory
    from llm_datadist._options.settings import Config


@dataclass(frozen=True, slots=True)
class Selection:
    """The channel of a link, and why better backends were not used.

    Attributes:
        channel: The channel.
        reasons: For each backend that was tried before, why it is unavailable.
    """

    channel: Channel
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True)
class Offer:
    """The backends of an instance, best first.

    Attributes:
        backends: The available ones.
        missing: For each backend that this host could use but is not available, why.
    """

    backends: tuple[Backend, ...]
    missing: dict[str, str]


def make_backends(config: Config, node: Node, pools: tuple[PoolMemory, ...]) -> Offer:
    """Make the backends that the options select.

    By default an instance has the same-host path, also for GPUs if device memory is a GPU's, NIXL
    if the host has an RDMA device or device memory is a GPU's, and the lanes, which are faster than
    NIXL over plain Ethernet.

    Args:
        config: The instance's options.
        node: Its data plane.
        pools: Pool memory that peers may map.

    Raises:
        Unavailable: The selected backend is not available on this host.
    """
    lanes = TcpBackend(gpus=config.device == "cuda")
    if config.backend == "tcp":
        return Offer((lanes,), {})
    gpus = (GpuBackend(node, strict=config.strict_backend),) if config.device == "cuda" else ()
    if config.backend == "host":
        return Offer((_make_host(config, node, pools), *gpus), {})
    if config.backend == "nixl":
        return Offer((_make_nixl(config, node, rdma_only=False),), {})
    missing: dict[str, str] = {}
    accelerated: list[Backend] = []
    if has_rdma() or config.device == "cuda":
        try:
            accelerated.append(_make_nixl(config, node, rdma_only=True))
        except Unavailable as error:
            missing["nixl"] = str(error)
    return Offer((_make_host(config, node, pools), *gpus, *accelerated, lanes), missing)


def _make_host(config: Config, node: Node, pools: tuple[PoolMemory, ...]) -> HostBackend:
    authenticated = config.secret is not None or config.tls is not None
    return HostBackend(node, pools, any_user=authenticated)


def _make_nixl(config: Config, node: Node, *, rdma_only: bool) -> NixlBackend:
    from llm_datadist._backends.nixl.backend import NixlBackend  # noqa: PLC0415 - rarely needed

    return NixlBackend(
        node,
        config.nixl_backend,
        config.nixl_params,
        rdma_only=rdma_only,
        secret=config.secret,
    )


def select_channel(
    backends: tuple[Backend, ...], peer: PeerEndpoint, lanes: LinkLanes
) -> Selection:
    """Connect the first backend that can serve this pair.

    Raises:
        Unavailable: None can; the text lists each one's reason.
    """
    reasons: dict[str, str] = {}
    for backend in backends:
        try:
            return Selection(backend.connect(peer, lanes), reasons)
        except Unavailable as error:
            reasons[backend.name] = str(error)
    raise Unavailable("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def select_device_channel(
    backends: tuple[Backend, ...], peer: PeerEndpoint, lanes: LinkLanes, channel: Channel
) -> tuple[Channel | None, str]:
    """Return the channel for accelerator memory, or None; and why better ones are not used.

    It is the link's channel if that reaches such memory, else one beside it, and the lanes if there
    is no other.
    """
    if channel.innermost.reaches_devices:
        return channel, ""
    reasons: list[str] = []
    for backend in backends:
        is_lanes = backend.name == TcpBackend.name
        if "device" in backend.capabilities.placements and not is_lanes:
            try:
                return backend.connect_device(peer, lanes), "; ".join(reasons)
            except Unavailable as error:
                reasons.append(f"{backend.name}: {error}")
    if reasons or GpuBackend.name in peer.metadata:
        none = 'llm.Device is not "cuda"'
        return TcpChannel(lanes), "; ".join(reasons) or none
    return None, 'neither side has llm.Device "cuda"'
