"""Parse the option dictionary and the environment into a `Config`.

Source: api.md 3, 4.2.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from llm_datadist._options import keys
from llm_datadist._options.json_options import (
    check_buf_pool,
    check_global_resource_config,
    check_local_comm_res,
    parse_params,
    parse_pool,
)
from llm_datadist._options.private_files import check_private
from llm_datadist._options.reader import OptionReader
from llm_datadist._options.settings import (
    Backend,
    Checksum,
    Config,
    Device,
    GpuCopy,
    HugePages,
    NixlEngine,
    Pool,
)
from llm_datadist._options.tls_files import parse_tls
from llm_datadist._options.unknown_keys import log_unknown_keys
from llm_datadist._types.checks import INT32_MAX, INT64_MAX, UINT32_MAX, UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["parse_options", "parse_switch_options"]

_T = TypeVar("_T")

_HOUR_MS = 3_600_000
_SHARED_PAGE_SHIFT = 9  # so that a pool holds exactly the caches that it was computed for
_DEVICE = re.compile("[0-9]{1,10}")


def parse_options(options: dict[str, str], environ: Mapping[str, str] | None = None) -> Config:
    """Parse the options of `LLMDataDist.init`; the dictionary is not changed.

    Args:
        options: The options; unknown keys are ignored, and those of llm. logged once.
        environ: Environment variables; None for those of the process.

    Raises:
        TypeError: options is not a dict, or a known option is not a str.
        LLMException: LLM_PARAM_INVALID: an option is malformed or conflicts with another.
    Source: api.md 3, 4.2, 8.
    """
    reader = OptionReader(options, os.environ if environ is None else environ, "init")
    shared_pool = _shared_pool(reader)
    local_comm_res = reader.text(keys.LOCAL_COMM_RES)
    if local_comm_res is not None:
        check_local_comm_res(reader, local_comm_res)
    cache_manager = _on_with_local_comm_res(reader, keys.ENABLE_CACHE_MANAGER)
    backend = _choice(reader, keys.TRANSFER_BACKEND, (*get_args(Backend), "hixl"), "auto")
    if backend == "hixl":
        _check_hixl(reader, cache_manager=cache_manager)
    heartbeat_ms, peer_timeout_ms = _heartbeat(reader)
    device_pool = parse_pool(reader, keys.MEM_POOL)
    host_pool = parse_pool(reader, keys.HOST_MEM_POOL)
    if cache_manager:
        first = reader.listen(keys.LISTEN)
        listens = [] if first is None else [first]
    else:
        check_buf_pool(reader)
        listens = reader.listen_list(keys.LISTEN)
    log_unknown_keys("init", options)
    return Config(
        device_ids=_device_ids(reader),
        sync_timeout_ms=_either(reader.number(keys.SYNC_KV_TIMEOUT, 1, UINT32_MAX), 1000),
        listen=listens[0] if listens else None,
        cache_manager=cache_manager,
        remote_accessible=_on_with_local_comm_res(reader, keys.ENABLE_REMOTE_CACHE_ACCESSIBLE),
        device_pool=device_pool if cache_manager else None,
        host_pool=host_pool if cache_manager else None,
        local_comm_res=local_comm_res,
        link_total_time_s=_link_total_time(reader),
        link_retry_count=_either(reader.number(keys.LINK_RETRY_COUNT, 1, 100), 1),
        rdma_traffic_class=_either(
            reader.any_number(keys.RDMA_TRAFFIC_CLASS),
            reader.environment_number(keys.ENV_RDMA_TC, 0, UINT32_MAX),
            132,
        ),
        rdma_service_level=_either(
            reader.any_number(keys.RDMA_SERVICE_LEVEL),
            reader.environment_number(keys.ENV_RDMA_SL, 0, UINT32_MAX),
            4,
        ),
        backend="auto" if backend == "hixl" else backend,
        is_hixl=backend == "hixl",
        global_resource_config=reader.text(keys.GLOBAL_RESOURCE_CONFIG),
        switch_role=reader.switch(keys.ENABLE_SWITCH_ROLE) or False,
        max_registered_addrs=_either(reader.number(keys.MAX_REGISTERED_ADDRS, 1, INT64_MAX), 240),
        link_base_port=_either(
            reader.number(keys.LINK_BASE_PORT, 1024, 65000),
            reader.environment_number(keys.ENV_BASE_PORT, 1024, 65520),
            60000,
        ),
        secret=_secret(reader),
        tls=parse_tls(reader),
        allow_anonymous=reader.switch(keys.ALLOW_ANONYMOUS),
        device=_choice(reader, keys.DEVICE, get_args(Device), "auto"),
        gpu_copy=_choice(reader, keys.GPU_COPY, get_args(GpuCopy), "auto"),
        transfer_threads=reader.number(keys.TRANSFER_THREADS, 1, 256),
        lanes_per_link=_either(reader.number(keys.LANES_PER_LINK, 1, 64), 4),
        heartbeat_ms=heartbeat_ms,
        peer_timeout_ms=peer_timeout_ms,
        auto_relink=reader.switch(keys.AUTO_RELINK) is not False,
        slow_transfer_ms=reader.number(keys.SLOW_TRANSFER, 1, UINT32_MAX),
        checksum=_choice(reader, keys.CHECKSUM, get_args(Checksum), "off"),
        huge_pages=_choice(reader, keys.HUGE_PAGES, get_args(HugePages), "off"),
        nixl_backend=_choice(reader, keys.NIXL_BACKEND, get_args(NixlEngine), "UCX"),
        nixl_params=parse_params(reader, keys.NIXL_PARAMS),
        strict_backend=reader.switch(keys.STRICT_BACKEND) or False,
        shared_pool=None if cache_manager else shared_pool,
        more_listen=tuple(listens[1:]),
    )


def parse_switch_options(
    config: Config, options: dict[str, str], bound_port: int | None = None
) -> list[tuple[str, int]]:
    """Return the listen addresses in the options of `LLMDataDist.switch_role`, at most one.

    In the first generation there may be several.

    Args:
        config: Of the instance.
        options: The options; everything but the address is ignored.
        bound_port: Port bound by init; backend "hixl" keeps it.

    Raises:
        TypeError: options is not a dict, or the address is not a str.
        LLMException: LLM_PARAM_INVALID: the address is malformed, or its port differs from that of
            init with backend "hixl".
    Source: api.md 4.7.
    """
    reader = OptionReader(options, {}, "switch_role")
    if not config.cache_manager:
        return reader.listen_list(keys.LISTEN)
    listen = reader.listen(keys.LISTEN)
    if listen is not None and config.is_hixl and config.listen is not None:
        given, kept = listen[1], config.listen[1] or bound_port or 0
        if given not in {kept, config.listen[1]}:
            raise reader.invalid(
                keys.LISTEN,
                f'has port {given}, and option {keys.TRANSFER_BACKEND} is "hixl"',
                f"keep the port of init, {kept}",
            )
        return [(listen[0], kept)]
    return [] if listen is None else [listen]


def _either(*values: _T | None) -> _T:
    """Return the first value that is not None; the last one must not be None."""
    return next(value for value in values if value is not None)


def _choice(reader: OptionReader, key: str, choices: tuple[_T, ...], default: _T) -> _T:
    text = reader.text(key)
    if text is None:
        return default
    for choice in choices:
        if choice == text:
            return choice
    raise reader.invalid(key, f"is {text!r}", f"give one of {', '.join(map(str, choices))}")


def _check_hixl(reader: OptionReader, *, cache_manager: bool) -> None:
    """Check the conditions of transfer_backend "hixl" on other options."""
    wanted = f'and option {keys.TRANSFER_BACKEND} is "hixl"'
    if not cache_manager:
        remedy = 'set it to "1" (LLMConfig.enable_cache_manager = True)'
        raise reader.invalid(keys.ENABLE_CACHE_MANAGER, f"is off {wanted}", remedy)
    if reader.text(keys.LISTEN) is None:
        remedy = "set it to ip:port (LLMConfig.listen_ip_info)"
        raise reader.invalid(keys.LISTEN, f"is missing {wanted}", remedy)
    if reader.switch(keys.ENABLE_REMOTE_CACHE_ACCESSIBLE) is False:
        remedy = 'set it to "1" or leave it out'
        raise reader.invalid(keys.ENABLE_REMOTE_CACHE_ACCESSIBLE, f"is off {wanted}", remedy)
    check_global_resource_config(reader, reader.text(keys.GLOBAL_RESOURCE_CONFIG) or "")


def _on_with_local_comm_res(reader: OptionReader, key: str) -> bool:
    """Return a switch that local_comm_res turns on, and that must not be off together with it."""
    given, has_resources = reader.switch(key), reader.text(keys.LOCAL_COMM_RES) is not None
    if given is False and has_resources:
        problem = f"is off and option {keys.LOCAL_COMM_RES} is set"
        raise reader.invalid(key, problem, "leave one of them out")
    return given or has_resources


def _device_ids(reader: OptionReader) -> tuple[int, ...]:
    text = reader.text(keys.DEVICE_ID)
    if text is None:
        return (0,)
    parts = text.split(";")
    if not all(_DEVICE.fullmatch(part) and int(part) <= INT32_MAX for part in parts):
        remedy = 'give device numbers, separated by semicolons: "0" or "0;1"'
        raise reader.invalid(keys.DEVICE_ID, f"is {text!r}", remedy)
    return tuple(map(int, parts))


def _link_total_time(reader: OptionReader) -> int:
    given = reader.number(keys.LINK_TOTAL_TIME, 0, UINT32_MAX)
    return given or _either(reader.environment_number(keys.ENV_CONNECT_TIMEOUT, 1, UINT32_MAX), 120)


def _heartbeat(reader: OptionReader) -> tuple[int, int]:
    """Return the interval of the heartbeat and the timeout of a peer, in milliseconds."""
    given = reader.number(keys.HEARTBEAT, 0, _HOUR_MS)
    timeout = _either(
        reader.number(keys.PEER_TIMEOUT, 100, 24 * _HOUR_MS), max(10_000, 2 * (given or 0))
    )
    heartbeat = _either(given, min(1000, timeout // 2))
    if timeout < 2 * heartbeat:
        raise reader.invalid(
            keys.PEER_TIMEOUT,
            f"is {timeout}, and option {keys.HEARTBEAT} is {heartbeat}",
            "give a peer at least two heartbeats of time",
        )
    return heartbeat, timeout


def _shared_pool(reader: OptionReader) -> Pool:
    """Return the first generation's pool; half of the machine's memory without a size."""
    size = reader.number(keys.FLOW_GRAPH_MEM_MAX_SIZE, 0, UINT64_MAX)
    utilization = _mem_utilization(reader)
    if size is None:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    else:
        size = int(size * utilization)
    return Pool(size, _SHARED_PAGE_SHIFT)


def _mem_utilization(reader: OptionReader) -> float:
    text = reader.text(keys.MEM_UTILIZATION)
    if text is None:
        return 0.95
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise reader.invalid(keys.MEM_UTILIZATION, f"is {text!r}", "give a fraction in [0, 1]")
    return value


def _secret(reader: OptionReader) -> bytes | None:
    """Return the secret of the option, of the environment, or of the file that it names."""
    secret = reader.text(keys.LINK_SECRET)
    if secret is not None:
        if not secret:
            raise reader.invalid(keys.LINK_SECRET, "is empty", "give a secret or leave it out")
        return os.fsencode(secret)
    if reader.environment(keys.ENV_SECRET):
        return os.fsencode(reader.environment(keys.ENV_SECRET))
    name = reader.environment(keys.ENV_SECRET_FILE)
    if not name:
        return None
    source = f"{keys.LINK_SECRET} (file {name}, named by {keys.ENV_SECRET_FILE})"
    try:
        content = Path(name).read_bytes().rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        raise reader.invalid(source, f"cannot be read: {error}", "name a file to read") from None
    if not content:
        raise reader.invalid(source, "is empty", "put the secret into the file")
    check_private(reader, keys.LINK_SECRET, name)
    return content
