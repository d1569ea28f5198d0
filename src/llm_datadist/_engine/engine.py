"""The engine of one instance: makes its parts, connects them, starts and ends them."""

from __future__ import annotations

import contextlib
import errno
import secrets
from typing import TYPE_CHECKING

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.node import Node, set_threads
from llm_datadist._backends.select import make_backends
from llm_datadist._control.limits import limit_of, memory_remedy
from llm_datadist._engine.instance import Instance, Lifetime
from llm_datadist._engine.leases.borrower import Borrower
from llm_datadist._engine.leases.lender import Lender
from llm_datadist._engine.link.delegate import DataPlanes
from llm_datadist._engine.link.ended_notices import EndedNotices
from llm_datadist._engine.link.messages import (
    Ended,
    Faulted,
    Inbox,
    Lend,
    Marked,
    Release,
    Remapped,
    Renew,
)
from llm_datadist._engine.link.peer_transfers import PeerTransfers
from llm_datadist._engine.memory.accelerators import check_cuda
from llm_datadist._engine.memory.fault_marks import FaultMarks
from llm_datadist._engine.memory.pools import MemoryPools
from llm_datadist._engine.memory.registration import MemoryRegistration
from llm_datadist._engine.memory.remap import Remap
from llm_datadist._engine.transfer.attempt import Attempts
from llm_datadist._engine.transfer.calls import Transfers
from llm_datadist._engine.transfer.checksums import Checksums
from llm_datadist._engine.transfer.counters import TransferCounters
from llm_datadist._engine.transfer.layerwise import Layerwise
from llm_datadist._engine.transfer.local_copies import LocalCopies
from llm_datadist._engine.transfer.order import Order
from llm_datadist._engine.transfer.remote_directories import RemoteDirectories
from llm_datadist._engine.transfer.resharded import Resharding
from llm_datadist._errors import LLMException, LLMStatusCode, fail, invalid
from llm_datadist._links import LinkTable
from llm_datadist._options import keys
from llm_datadist._registry import POOL_OPTIONS, CacheRegistry
from llm_datadist._types import Placement
from llm_datadist._types.stats import FaultStats, InstanceStats, LeaseStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.base import Backend
    from llm_datadist._backends.select import Offer
    from llm_datadist._options.settings import Config
    from llm_datadist._types import MemInfo

_SHARED_POOL_OPTIONS = dict.fromkeys(Placement, keys.FLOW_GRAPH_MEM_MAX_SIZE)


class Engine:
    """One initialized instance. Thread-safe.

    Args:
        cluster_id: The instance's id.
        config: Its parsed options.

    Raises:
        LLMException: LLM_OUT_OF_MEMORY: a pool or the published page cannot be had; LLM_FAILED:
            memory files or descriptors are refused;
            LLM_FEATURE_NOT_ENABLED: the options ask for memory of an accelerator, and there is
            none, or nothing that moves it.
    """

    def __init__(self, cluster_id: int, config: Config) -> None:
        if config.device == "cuda":
            check_cuda()
        self.cluster_id = cluster_id
        self.config = config
        incarnation = secrets.randbits(63) | 1
        if config.transfer_threads is not None:
            set_threads(config.transfer_threads)
        self._life = Lifetime()
        self.check_open: Callable[[str], None] = self._life.check_open
        self._pools = MemoryPools()
        self.node: Node = _published(incarnation, config)
        try:
            self._add_pools(config)
            self._pools.add(keys.FLOW_GRAPH_MEM_MAX_SIZE, config.shared_pool, *Placement)
            offer = _backends(config, self.node, self._pools)
            self.backends: list[Backend] = list(offer.backends)
            data_planes = DataPlanes(config, self.node, self.backends, offer.missing)
            self.links: LinkTable = LinkTable(cluster_id, config, incarnation, data_planes)
            self.registry: CacheRegistry = CacheRegistry(
                self.node,
                max_registered_addrs=config.max_registered_addrs,
                pools=self._pools.by_placement,
                pool_options=_SHARED_POOL_OPTIONS if config.shared_pool else POOL_OPTIONS,
                listener=MemoryRegistration(config, self.backends, self.links, self._life),
            )
            self._compose(data_planes)
        except BaseException:
            self._release_memory()
            raise

    def _add_pools(self, config: Config) -> None:
        if config.device != "cuda":
            self._pools.add("mem_pool_cfg", config.device_pool, Placement.DEVICE)
        self._pools.add("host_mem_pool_cfg", config.host_pool, Placement.HOST)
        if config.device == "cuda":
            ordinal = config.device_ids[0]
            self._pools.add_device("mem_pool_cfg", config.device_pool, ordinal)
            self._pools.pin("host_mem_pool_cfg", ordinal)

    def _compose(self, data_planes: DataPlanes) -> None:
        """Make the parts, lower ones first, and connect those that call upwards."""
        instance = Instance(
            self.cluster_id,
            self.config,
            self.node,
            self.registry,
            self.links,
            self.backends,
            self._life,
        )
        self.fault_marks: FaultMarks = FaultMarks(instance)
        self._remap = Remap(instance, self.fault_marks, self._pools.on_gpus)
        self.remap: Callable[[tuple[MemInfo, ...]], None] = self._remap.run
        self.lender: Lender = Lender(instance)
        self.borrower: Borrower = Borrower(instance)
        self._counters = TransferCounters()
        attempts = Attempts(
            instance,
            self.fault_marks,
            Checksums(self.node),
            self._counters,
            EndedNotices(self.links),
        )
        self.order: Order = Order(instance)
        self.transfers: Transfers = Transfers(instance, attempts)
        self.layerwise: Layerwise = Layerwise(instance, self.transfers)
        self.resharding: Resharding = Resharding(instance, attempts)
        self.remote_directories: RemoteDirectories = RemoteDirectories(instance)
        self.local_copies: LocalCopies = LocalCopies(instance, self.fault_marks)
        data_planes.attach(self.links, self.fault_marks.for_peers, self.lender.link_ended)
        self.registry.on_gone = self.lender.cache_gone
        inbox = Inbox(
            {Remapped: self._remap.serve, Lend: self.lender.lend, Renew: self.lender.renew},
            {
                Faulted: self.fault_marks.on_notice,
                Marked: self.fault_marks.on_peer_marks,
                Release: self.lender.release,
                Ended: PeerTransfers(self.config.slow_transfer_ms).receive,
            },
        )
        self.links.hooks.on_request = inbox.on_request
        self.links.hooks.on_notify = inbox.on_notify

    def start(self) -> None:
        """Start the control thread and the listener.

        Raises:
            LLMException: LLM_FAILED: the listen address is in use or not of this machine.
        """
        try:
            self.links.start(self.config.listen, *self.config.more_listen)
        except OSError as error:
            raise fail(
                LLMStatusCode.LLM_FAILED,
                "init",
                error.strerror or str(error),
                limit_of(
                    error, "choose an address of this machine and a free port in listen_ip_info"
                ),
            ) from error

    def describe_link(self, cluster_id: int) -> dict[str, object]:
        """See LLMDataDist.describe_link."""
        link = self.links.get(cluster_id, "describe_link")
        return {**self.links.describe(cluster_id), **link.data.describe()}

    def describe_links(self) -> list[dict[str, object]]:
        """See LLMDataDist.describe_links."""
        described = []
        for link in self.links.links():
            with contextlib.suppress(LLMException):  # it has ended meanwhile
                described.append(self.describe_link(link.cluster_id))
        return described

    def stats(self) -> InstanceStats:
        """See LLMDataDist.stats."""
        lent, lent_blocks = self.lender.num_lent()
        faults = self.fault_marks.ranges()
        return InstanceStats(
            cluster_id=self.cluster_id,
            transfers=self._counters.stats(),
            links=self.links.stats(),
            pools=self._pools.stats(),
            caches=self.registry.stats(),
            leases=LeaseStats(self.borrower.num_held(), lent, lent_blocks),
            faults=FaultStats(
                len(faults), sum(fault.size for fault in faults), self._remap.num_remaps
            ),
        )

    def leave_to_parent(self) -> None:
        """Refuse all calls: this is a forked child, and everything belongs to its parent."""
        self._life.closing = self._life.inherited = True

    def begin_close(self) -> None:
        """Refuse new calls and make running ones end with LLM_ENGINE_FINALIZED."""
        self._life.closing = True
        self.layerwise.close()
        self.resharding.close()
        self.fault_marks.close()
        self.node.close()

    def close(self) -> None:
        """End links, threads and memory. Idempotent; never hangs."""
        self.begin_close()
        is_quiet = self.links.close()
        self.registry.close()
        for backend in self.backends:
            backend.close()
        self._release_memory()
        if is_quiet:
            self.node.release()

    def _release_memory(self) -> None:
        self.node.close()
        self._pools.close()


def _published(incarnation: int, config: Config) -> Node:
    try:
        return Node(incarnation, config.gpu_copy)
    except OSError as error:
        is_memory = error.errno == errno.ENOMEM
        raise fail(
            LLMStatusCode.LLM_OUT_OF_MEMORY if is_memory else LLMStatusCode.LLM_FAILED,
            "init",
            f"the published directory cannot be had ({error})",
            memory_remedy(error),
        ) from error


def _backends(config: Config, node: Node, pools: MemoryPools) -> Offer:
    try:
        return make_backends(config, node, tuple(pools.memories))
    except Unavailable as error:
        raise invalid("init", str(error), "set transfer_backend") from error
