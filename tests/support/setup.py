"""Options, instances, addresses and small programs for tests; imports the package only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from llm_datadist import LLMClusterInfo, LLMConfig, LLMDataDist, LLMRole

TESTS = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"
ANY_PORT = f"{LOOPBACK}:0"


def options_of(*, listen=ANY_PORT, **properties):
    """Return options with the cache manager on; `properties` are those of LLMConfig.

    Args:
        listen: Address; None for a client.
    """
    config = LLMConfig()
    config.enable_cache_manager = True
    if listen is not None:
        config.listen_ip_info = listen
    for name, value in properties.items():
        setattr(config, name, value)
    return config.generate_options()


def started(cluster_id, *, role=LLMRole.MIX, **properties):
    """Return an initialized instance; see options_of."""
    instance = LLMDataDist(role, cluster_id)
    instance.init(options_of(**properties))
    return instance


def info_of(other=None, cluster_id=None, local=LOOPBACK):
    """Return the LLMClusterInfo of an instance or an address; without one, of the id alone."""
    info = LLMClusterInfo()
    if cluster_id is not None:
        info.remote_cluster_id = cluster_id
    if other is not None:
        info.append_remote_ip_info(*getattr(other, "listen_address", other))
        if local is not None:
            info.append_local_ip_info(local, 0)
    return info


def run_program(program, *arguments, before=(), seconds=60.0):
    """Run a program, which can import `support`, to its end; return the completed process."""
    command = [*before, sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, cwd=TESTS, capture_output=True, text=True, timeout=seconds, check=False
    )
