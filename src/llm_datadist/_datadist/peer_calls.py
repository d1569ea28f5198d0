"""Calls about links that take one peer and raise *(extension)*."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._datadist.link_calls import positive_timeout_ms
from llm_datadist._errors import LLMException, LLMStatusCode, fail, invalid
from llm_datadist._types import LLMClusterInfo
from llm_datadist._types.checks import (
    check_bool,
    check_instance,
    check_int,
    check_uint64,
    wrong_type,
)

if TYPE_CHECKING:
    from llm_datadist._engine import Engine
    from llm_datadist._links import LinkResult

__all__ = ["PeerCalls"]


class PeerCalls:
    """Links one peer at a time, and raises what went wrong *(extension)*."""

    def _live(self, operation: str) -> Engine:
        raise NotImplementedError

    def link_peer(
        self,
        address: str | tuple[str, int],
        *,
        cluster_id: int | None = None,
        timeout: int = 3000,
    ) -> int:
        """Link to the instance at an address, and return its cluster id *(extension)*.

        The link is the same as one of `link_clusters`.

        Args:
            address: `ip:port`, `[v6]:port`, `host:port`, or (host, port): where the peer listens.
            cluster_id: Refuse a peer with another id; None = any.
            timeout: Milliseconds, > 0.

        Raises:
            TypeError: A wrong type.
            ValueError: A port or an id outside its width.
            LLMException: LLM_PARAM_INVALID (address, timeout), and what `link_clusters` reports:
                LLM_LINK_FAILED, LLM_TIMEOUT, LLM_ALREADY_LINK, LLM_PROCESSING_LINK. There is no
                new link then.
        Source: an extension; docs/reference/parity.md.
        """
        operation = "link_peer"
        engine = self._live(operation)
        info = _info_of(operation, address)
        if cluster_id is not None:
            info.remote_cluster_id = check_uint64("cluster_id", cluster_id)
        timeout_ms = positive_timeout_ms(operation, timeout)
        (result,) = engine.links.link_clusters([info], timeout_ms)
        if result.link is None or not result.is_ok:
            raise _failed(operation, result, cluster_id)
        return result.link.cluster_id

    def unlink_peer(self, cluster_id: int, *, timeout: int = 3000, force: bool = False) -> None:
        """End the link to a cluster *(extension)*; nothing when there is none.

        No transfer of the link touches memory after this returns or raises.

        Args:
            cluster_id: Of the peer.
            timeout: Milliseconds, > 0, to notify the peer.
            force: End only the local end, without waiting for the peer.

        Raises:
            TypeError: A wrong type.
            ValueError: cluster_id outside uint64.
            LLMException: LLM_PARAM_INVALID (timeout); LLM_NOTIFY_PROMPT_UNLINK_FAILED: the peer
                could not be notified; the local end is gone all the same.
        Source: an extension; docs/reference/parity.md.
        """
        operation = "unlink_peer"
        engine = self._live(operation)
        info = LLMClusterInfo()
        info.remote_cluster_id = check_uint64("cluster_id", cluster_id)
        timeout_ms = positive_timeout_ms(operation, timeout)
        check_bool("force", force)
        (result,) = engine.links.unlink_clusters([info], timeout_ms, force)
        if not result.is_ok:
            raise _failed(operation, result, cluster_id)

    def describe_links(self) -> list[dict[str, object]]:
        """Return the facts of every link, as `describe_link` does of one *(extension)*.

        A link that ends meanwhile is left out. Does not wait for peers.
        Source: an extension; docs/reference/parity.md.
        """
        return self._live("describe_links").describe_links()

    def describe_remote_caches(self, cluster_id: int) -> list[dict[str, object]]:
        """Return the facts of the caches that a linked peer has now *(extension)*.

        From the peer's directory: its interpreter takes no part. Each is a dict of plain values:
        cache_id, kind ("blocks" or "contiguous"), num_tensors, shape, data_type, placement, bytes
        (of all tensors), on_device, accessible (whether peers may touch it), named (whether keys
        may use its id), blocks_key, keys and layout.

        Args:
            cluster_id: Of the peer.

        Raises:
            TypeError: A wrong type.
            ValueError: cluster_id outside uint64.
            LLMException: LLM_NOT_YET_LINK, LLM_LINK_FAILED; LLM_TIMEOUT after sync_kv_timeout (in
                first-generation mode LLM_WAIT_PROCESS_TIMEOUT); LLM_FAILED: what the peer has
                published breaks the protocol.
        Source: an extension; docs/reference/parity.md.
        """
        directories = self._live("describe_remote_caches").remote_directories
        return directories.describe(check_uint64("cluster_id", cluster_id))


def _info_of(operation: str, address: str | tuple[str, int]) -> LLMClusterInfo:
    """Return the info of a cluster at an address."""
    info = LLMClusterInfo()
    if isinstance(address, tuple) and len(address) == 2:
        host, port = address
    elif isinstance(address, str):
        host, _, digits = address.rpartition(":")
        if not (digits.isascii() and digits.isdigit()):
            raise _no_address(operation, address)
        host, port = host.removeprefix("[").removesuffix("]"), int(digits)
    else:
        raise wrong_type("address", address, "str or (str, int)")
    check_instance("the host of address", host, str)
    check_int("the port of address", port, 0, 65535)
    try:
        info.append_remote_ip_info(host, port)
    except LLMException as error:
        raise _no_address(operation, address) from error
    return info


def _no_address(operation: str, address: object) -> LLMException:
    problem, remedy = f"address is {address!r}", "give ip:port, [v6]:port or host:port"
    return invalid(operation, problem, remedy)


def _failed(operation: str, result: LinkResult, cluster_id: int | None) -> LLMException:
    status = result.status
    if status is LLMStatusCode.LLM_SUCCESS:  # the link ended as soon as it was made
        status = LLMStatusCode.LLM_LINK_FAILED
    problem, _, remedy = result.reason.rpartition("; ")
    problem, remedy = problem or "the link is gone", remedy or "link again"
    return fail(status, operation, problem, remedy, cluster_id=cluster_id)
