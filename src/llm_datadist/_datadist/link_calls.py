"""Arguments and results of `link_clusters` and `unlink_clusters`."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._types import LLMClusterInfo
from llm_datadist._types.checks import check_instance, check_int

if TYPE_CHECKING:
    from llm_datadist._links import LinkResult
    from llm_datadist._options.settings import Config

logger = logging.getLogger("llm_datadist")

MAX_CLUSTERS = 16
"""The most clusters of one call."""

LinkStatuses = tuple[LLMStatusCode, list[LLMStatusCode]]
"""What both calls return: the overall status, and one per cluster."""


def cluster_infos(clusters: object) -> list[LLMClusterInfo]:
    """Return the clusters of a call; TypeError for anything but LLMClusterInfos."""
    infos: list[LLMClusterInfo] = list(check_instance("clusters", clusters, list, tuple))
    for position, info in enumerate(infos):
        check_instance(f"clusters[{position}]", info, LLMClusterInfo)
    return infos


def positive_timeout_ms(operation: str, timeout: int) -> int:
    """Return the timeout of a call; LLM_PARAM_INVALID below 1 ms."""
    timeout_ms = check_int("timeout", timeout, -math.inf)
    if timeout_ms <= 0:
        raise fail(
            LLMStatusCode.LLM_PARAM_INVALID,
            operation,
            f"timeout is {timeout_ms}",
            "give milliseconds, at least 1",
        )
    return timeout_ms


def check_addresses(operation: str, position: int, info: LLMClusterInfo, config: Config) -> None:
    """Require a remote address, and a local one unless local_comm_res is set (LLM_PARAM_INVALID).

    Several local addresses are for the devices of a first-generation instance.
    """
    local_needed = not config.local_comm_res_given
    problem = ""
    if not info.remote_ip_info_list:
        problem = "remote_ip_info_list is empty"
        remedy = "append_remote_ip_info(ip, port) with the peer's listen address"
    elif local_needed and not info.local_ip_info_list:
        problem = "local_ip_info_list is empty"
        remedy = "append_local_ip_info(ip, port) with an address of this machine"
    elif config.cache_manager and local_needed and len(info.local_ip_info_list) > 1:
        problem = f"local_ip_info_list has {len(info.local_ip_info_list)} entries"
        remedy = "give exactly one"
    if problem:
        raise fail(
            LLMStatusCode.LLM_PARAM_INVALID, operation, f"clusters[{position}]: {problem}", remedy
        )


def too_many(operation: str, infos: list[LLMClusterInfo]) -> LinkStatuses:
    """Log that a call has more than MAX_CLUSTERS clusters, and return its statuses."""
    logger.error(
        "%s: %d clusters in one call, the limit is %d; split the call",
        operation,
        len(infos),
        MAX_CLUSTERS,
    )
    status = LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT
    return status, [status] * len(infos)


def statuses(operation: str, results: list[LinkResult]) -> LinkStatuses:
    """Log the reasons of failures; the first of these is the overall status."""
    overall = LLMStatusCode.LLM_SUCCESS
    for position, result in enumerate(results):
        if result.status is not LLMStatusCode.LLM_SUCCESS:
            logger.error(
                "%s: clusters[%d]: %s: %s", operation, position, result.status, result.reason
            )
            if overall is LLMStatusCode.LLM_SUCCESS:
                overall = result.status
    return overall, [result.status for result in results]
