"""LLMDataDist: the facade of an instance and its links. It checks argument types only."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from typing import TYPE_CHECKING, ClassVar, NoReturn

from llm_datadist._cache_manager import CacheManager
from llm_datadist._datadist.first_generation import check_switch, listens_for, with_role
from llm_datadist._datadist.link_calls import (
    MAX_CLUSTERS,
    LinkStatuses,
    check_addresses,
    cluster_infos,
    positive_timeout_ms,
    statuses,
    too_many,
)
from llm_datadist._datadist.parts import load_parts
from llm_datadist._datadist.peer_calls import PeerCalls
from llm_datadist._errors import LLMException, LLMStatusCode, fail, inherited, restate
from llm_datadist._kv_cache_manager import KvCacheManager, RoleRules
from llm_datadist._logs import later
from llm_datadist._types import LLMClusterInfo, LLMRole, RegisterMemStatus
from llm_datadist._types.checks import (
    check_bool,
    check_instance,
    check_uint64,
)
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from types import TracebackType

    from llm_datadist._domains import Domains
    from llm_datadist._engine import Engine
    from llm_datadist._types.stats import InstanceStats

logger = logging.getLogger("llm_datadist")


@names_calls
class LLMDataDist(PeerCalls):
    """One instance: joins other instances by links and owns caches that move over them.

    Args:
        role: PROMPT, DECODER or MIX; a label with the cache manager. In first-generation mode
            PROMPT serves, DECODER dials and pulls, MIX does both.
        cluster_id: uint64 id of this instance; should be unique among linked instances.

    Raises:
        TypeError: role is not an LLMRole, or cluster_id not an integer.
        ValueError: cluster_id outside uint64.

    Thread-safe; calls that wait release the GIL. Before `init` and after `finalize` every other
    method raises RuntimeError. Any number of instances may live in a process. As a context manager
    it finalizes at the end of the block; every live instance is finalized when the interpreter
    exits. An instance does not survive a fork: in the child it is not initialized; the parent's
    instance is not affected.
    Source: api.md 4.1.
    """

    llm_engine_instance: ClassVar[LLMDataDist | None] = None
    """The most recently initialized instance, or None."""

    def __init__(self, role: LLMRole, cluster_id: int) -> None:
        check_instance("role", role, LLMRole)
        self._cluster_id = check_uint64("cluster_id", cluster_id)
        load_parts()  # not in `init`, which may run with few descriptors left
        self._lock = threading.Lock()
        self._bound_port: int | None = None
        self._inherited = False
        self._engine: Engine | None = None
        self._domains: Domains | None = None
        self._roles = RoleRules(role)
        self._cache_manager: CacheManager | None = None
        self._kv_cache_manager: KvCacheManager | None = None

    def __repr__(self) -> str:
        state = "initialized" if self._engine is not None else "not initialized"
        return f"LLMDataDist(role={self._roles.role}, cluster_id={self._cluster_id}, {state})"

    @property
    def cluster_id(self) -> int:
        """The id given to the constructor."""
        return self._cluster_id

    @property
    def role(self) -> LLMRole:
        """The current role; `switch_role` changes it. *(extension)*"""
        return self._roles.role

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Address (ip, port) at which links are accepted, or None. *(extension)*"""
        return self._live("listen_address").links.listen_address

    def init(self, options: dict[str, str]) -> None:
        """Initialize with the options of `LLMConfig.generate_options()`.

        Returns silently when already initialized. The dict is copied; unknown keys are ignored.
        When it returns, the listener (if a listen address is given) accepts links. Options with
        neither the cache manager nor local_comm_res select first-generation mode.

        Raises:
            TypeError: options is not a dict, or a value has a wrong type.
            LLMException: LLM_PARAM_INVALID (an invalid option, which is named; no listen address
                for the role PROMPT in first-generation mode), LLM_FEATURE_NOT_ENABLED (memory of an
                accelerator that cannot be had), LLM_FAILED (listen address in use or not of this
                machine; threads, descriptors or memory files are refused; gevent or eventlet has
                patched threads or sockets), LLM_OUT_OF_MEMORY (a pool cannot be allocated). Nothing
                is left behind.
        Source: api.md 4.2, 8.
        """
        check_instance("options", options, dict)
        with later(), self._lock:
            if self._engine is not None:
                return
            parts = load_parts()
            parts.check_not_patched()
            config = with_role(parts.parse_options(dict(options)), self._roles.role)
            engine = parts.engine(self._cluster_id, config)
            try:
                engine.start()
            except BaseException:
                engine.close()
                raise
            listen = engine.links.listen_address
            self._bound_port = listen[1] if listen else None
            self._engine = engine
            self._inherited = False
            self._domains = parts.domains(self._cluster_id, config, engine.links)
            if config.cache_manager:
                self._cache_manager = CacheManager(engine)
            else:
                self._kv_cache_manager = KvCacheManager(engine, self._roles)
            _live_instances.add(self)
            LLMDataDist.llm_engine_instance = self

    def finalize(self) -> None:
        """End links, release caches, pools, listener and threads. No-op when not initialized.

        Running calls of other threads raise LLM_ENGINE_FINALIZED within a second. After it returns
        no peer can read or write memory of this instance. Never hangs.

        Raises:
            LLMException: LLM_FAILED: called on the library's own thread, by a log handler.
        Source: api.md 4.3.
        """
        if (running := self._engine) is not None:
            running.links.check_thread("finalize")
        with later(), self._lock:
            engine, self._engine = self._engine, None
            domains, self._domains = self._domains, None
            self._cache_manager = self._kv_cache_manager = None
            if LLMDataDist.llm_engine_instance is self:
                LLMDataDist.llm_engine_instance = None
            _live_instances.discard(self)
            if engine is None:
                return
            engine.begin_close()
            if domains is not None:
                domains.close()
            engine.close()

    def __enter__(self) -> LLMDataDist:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finalize()

    def _leave_to_parent(self) -> None:
        """Become an instance that is not initialized, in a forked child."""
        if self._engine is not None:
            self._engine.leave_to_parent()
            self._inherited = True
            _inherited.append(self._engine)
        self._engine = self._domains = self._cache_manager = self._kv_cache_manager = None
        self._lock = threading.Lock()

    def _refuse(self, operation: str) -> NoReturn:
        raise RuntimeError(
            inherited(operation)
            if self._inherited
            else f"{operation}: the LLMDataDist instance is not initialized; call init() first"
        )

    def _live(self, operation: str) -> Engine:
        engine = self._engine
        if engine is None:
            self._refuse(operation)
        return engine

    def _live_domains(self, operation: str) -> Domains:
        domains = self._domains
        if domains is None:
            self._refuse(operation)
        return domains

    def link_clusters(
        self, clusters: list[LLMClusterInfo] | tuple[LLMClusterInfo, ...], timeout: int = 3000
    ) -> LinkStatuses:
        """Link to other instances, all at the same time.

        Args:
            clusters: At most 16; each with a remote address and one local address.
            timeout: Milliseconds, > 0.

        Returns:
            (overall, one status per cluster in order); overall is LLM_SUCCESS only if all are, else
            the first failure. The reasons of failures are in the log. In first-generation mode
            overall is LLM_SUCCESS in any case, several local addresses are allowed, and a peer that
            does not listen yet is dialed until the timeout.
        Raises:
            TypeError: A wrong type.
            LLMException: LLM_PARAM_INVALID: timeout, or a cluster without addresses.
        Source: api.md 4.4, 8.
        """
        operation = "link_clusters"
        engine = self._live(operation)
        infos = cluster_infos(clusters)
        timeout_ms = positive_timeout_ms(operation, timeout)
        if len(infos) > MAX_CLUSTERS:
            return too_many(operation, infos)
        for position, info in enumerate(infos):
            check_addresses(operation, position, info, engine.config)
        overall, each = statuses(operation, engine.links.link_clusters(infos, timeout_ms))
        return overall if engine.config.cache_manager else LLMStatusCode.LLM_SUCCESS, each

    def unlink_clusters(
        self,
        clusters: list[LLMClusterInfo] | tuple[LLMClusterInfo, ...],
        timeout: int = 3000,
        force: bool = False,
    ) -> LinkStatuses:
        """End links; no transfer of them touches memory after this returns.

        Args:
            clusters: At most 16; found by remote_cluster_id, else by remote address.
            timeout: Milliseconds, > 0, to notify the peer.
            force: End only the local end, without waiting for the peer.

        Returns:
            (overall, one status per cluster); LLM_NOTIFY_PROMPT_UNLINK_FAILED where the peer could
            not be notified (the local end is gone anyway), LLM_SUCCESS where nothing was linked.
        Raises:
            TypeError: A wrong type.
            LLMException: LLM_PARAM_INVALID: timeout, or a cluster without id and remote address.
        Source: api.md 4.5.
        """
        operation = "unlink_clusters"
        engine = self._live(operation)
        infos = cluster_infos(clusters)
        timeout_ms = positive_timeout_ms(operation, timeout)
        check_bool("force", force)
        if len(infos) > MAX_CLUSTERS:
            return too_many(operation, infos)
        for position, info in enumerate(infos):
            if info.remote_cluster_id is None and not info.remote_ip_info_list:
                raise fail(
                    LLMStatusCode.LLM_PARAM_INVALID,
                    operation,
                    f"clusters[{position}] has neither remote_cluster_id nor a remote address",
                    "set remote_cluster_id or append_remote_ip_info",
                )
        return statuses(operation, engine.links.unlink_clusters(infos, timeout_ms, force))

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """Join a domain of 2 to 4 members that all call `link` alike; return its id immediately.

        Args:
            comm_name: 1..127 characters.
            cluster_rank_info: Cluster id -> rank, ranks ascending, including the own id.
            rank_table: JSON text with the addresses of the ranks.

        Returns:
            A comm id for `query_register_mem_status` and `unlink`.
        Raises:
            TypeError: A wrong type.
            LLMException: LLM_PARAM_INVALID, or LLM_CLUSTER_NUM_EXCEED_LIMIT beyond 512 domains.
        Source: api.md 4.6.
        """
        return self._live_domains("link").link(comm_name, cluster_rank_info, rank_table)

    def unlink(self, comm_id: int) -> None:
        """Leave a domain at this end; the pair's link ends with its last domain.

        Raises:
            TypeError: comm_id is no integer.
            LLMException: LLM_PARAM_INVALID: unknown comm_id.
        Source: api.md 4.6.
        """
        self._live_domains("unlink").unlink(comm_id)

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """Return PREPARING until every pair of the domain is linked, then OK; FAILED is final.

        Raises:
            TypeError: comm_id is no integer.
            LLMException: LLM_PARAM_INVALID: unknown comm_id.
        Source: api.md 4.6.
        """
        return self._live_domains("query_register_mem_status").query_register_mem_status(comm_id)

    def describe_domain(self, comm_id: int) -> dict[str, object]:
        """Return the members, states and reasons of a domain. *(extension)*

        Raises:
            TypeError: comm_id is no integer.
            LLMException: LLM_PARAM_INVALID: unknown comm_id.
        Source: api.md 4.6.
        """
        return self._live_domains("describe_domain").describe_domain(comm_id)

    def switch_role(self, role: LLMRole, switch_options: dict[str, str] | None = None) -> None:
        """Change the role: a server with `llm.listenIpInfo` in the options, else a client.

        In first-generation mode a DECODER is always a client.

        Raises:
            TypeError: A wrong type.
            LLMException: LLM_EXIST_LINK while there are links, LLM_PARAM_INVALID for an invalid
                address, LLM_FAILED when it cannot be bound; the earlier state is kept. In
                first-generation mode also LLM_FEATURE_NOT_ENABLED without enable_switch_role, and
                LLM_PARAM_INVALID for the same role, or for PROMPT without an address.
        Source: api.md 4.7, 8.
        """
        operation = "switch_role"
        engine = self._live(operation)
        engine.links.check_thread(operation)
        check_instance("role", role, LLMRole)
        if switch_options is not None:
            check_instance("switch_options", switch_options, dict)
        with later(), self._lock:
            check_switch(engine.config, self._roles.role, role)
            if engine.links.links():
                raise fail(
                    LLMStatusCode.LLM_EXIST_LINK,
                    operation,
                    f"links are left ({engine.links.names()})",
                    "unlink_clusters them first",
                )
            listens = load_parts().parse_switch_options(
                engine.config, switch_options or {}, self._bound_port
            )
            listens = listens_for(engine.config, operation, role, listens)
            try:
                engine.links.relisten(listens[0] if listens else None, *listens[1:])
            except OSError as error:
                raise fail(
                    LLMStatusCode.LLM_FAILED,
                    operation,
                    error.strerror or str(error),
                    "choose an address of this machine and a free port; the earlier state is kept",
                ) from error
            self._roles.role = role

    def check_link_status(self, remote_cluster_id: int) -> None:
        """Return when the link answers within sync_kv_timeout.

        Raises:
            TypeError: remote_cluster_id is no integer.
            ValueError: It is outside uint64.
            LLMException: LLM_NOT_YET_LINK, LLM_TIMEOUT (in first-generation mode
                LLM_WAIT_PROCESS_TIMEOUT) or LLM_LINK_FAILED.
        Source: api.md 4.8, 8.
        """
        engine = self._live("check_link_status")
        peer_id = check_uint64("remote_cluster_id", remote_cluster_id)
        try:
            engine.links.check(peer_id, engine.config.sync_timeout_ms)
        except LLMException as error:
            restate(error, engine.config.statuses)
            raise

    def describe_link(self, cluster_id: int) -> dict[str, object]:
        """Return the facts of one link *(extension)*.

        Peer, incarnation, backend and the reason for it, lanes, checksums, counters.

        Raises:
            TypeError: cluster_id is no integer.
            ValueError: It is outside uint64.
            LLMException: LLM_NOT_YET_LINK.
        Source: api.md 4.8.
        """
        engine = self._live("describe_link")
        return engine.describe_link(check_uint64("cluster_id", cluster_id))

    def describe_relinks(self) -> list[dict[str, object]]:
        """Return the facts of lost links that are being re-established. *(extension)*

        Unless the option auto_relink is off, a lost link that `link_clusters` of this instance made
        is re-established until it is up, or until `unlink_clusters`, `switch_role` or `finalize`
        ends that. `describe_link` counts successes ("relinked").
        Source: an extension; docs/reference/parity.md.
        """
        return self._live("describe_relinks").links.describe_relinks()

    def stats(self) -> InstanceStats:
        """Return a snapshot: transfers, links, pools, caches, leases, faults. *(extension)*

        Any thread; does not wait for peers or transfers.
        Source: an extension; docs/howto/metrics.md.
        """
        return self._live("stats").stats()

    @property
    def cache_manager(self) -> CacheManager:
        """The CacheManager: the same object until finalize.

        Raises:
            RuntimeError: Not initialized.
            LLMException: LLM_FEATURE_NOT_ENABLED: this is first-generation mode.
        Source: api.md 4.8, 8.
        """
        engine, manager = self._live("cache_manager"), self._cache_manager
        if manager is not None:
            return manager
        if engine.config.cache_manager:  # finalized meanwhile
            self._refuse("cache_manager")
        raise fail(
            LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            "cache_manager",
            "neither option llm.EnableCacheManager nor llm.LocalCommRes is set, so this instance "
            "runs in first-generation mode",
            'use the kv_cache_manager property, or set llm.EnableCacheManager to "1" '
            "(LLMConfig.enable_cache_manager = True) before init",
        )

    @property
    def kv_cache_manager(self) -> KvCacheManager:
        """The KvCacheManager, with the cache calls of the first generation, until finalize.

        Raises:
            RuntimeError: Not initialized.
            LLMException: LLM_FEATURE_NOT_ENABLED: this instance runs with the cache manager.
        Source: api.md 4.8, 8.
        """
        engine, manager = self._live("kv_cache_manager"), self._kv_cache_manager
        if manager is not None:
            return manager
        if not engine.config.cache_manager:  # finalized meanwhile
            self._refuse("kv_cache_manager")
        raise fail(
            LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
            "kv_cache_manager",
            "this instance runs with the cache manager",
            "use the cache_manager property, or leave llm.EnableCacheManager and llm.LocalCommRes "
            "out of the options of init",
        )


_live_instances: set[LLMDataDist] = set()
"""Initialized instances, including those without a reference: they serve peers until exit."""

_inherited: list[Engine] = []
"""Engines of a forked child's parent; kept, because this process must not release them."""


@atexit.register
def _finalize_all() -> None:
    for instance in list(_live_instances):
        try:
            instance.finalize()
        except Exception:  # the other instances must end all the same
            logger.exception("finalizing cluster %d at exit", instance.cluster_id)


def _forget_in_child() -> None:
    for instance in _live_instances:
        instance._leave_to_parent()
    _live_instances.clear()
    LLMDataDist.llm_engine_instance = None


os.register_at_fork(after_in_child=_forget_in_child)
