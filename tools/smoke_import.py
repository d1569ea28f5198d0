"""The shortest proof that an installed wheel works: import it, and link an instance to itself."""

from __future__ import annotations

import llm_datadist
from llm_datadist import LLMClusterInfo, LLMConfig, LLMDataDist, LLMRole, LLMStatusCode


def main() -> None:
    missing = [name for name in llm_datadist.__all__ if not hasattr(llm_datadist, name)]
    assert not missing, f"names in __all__ that do not exist: {missing}"
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    with LLMDataDist(LLMRole.MIX, 1) as instance:
        instance.init(config.generate_options())
        address = instance.listen_address
        assert address is not None
        cluster = LLMClusterInfo()
        cluster.append_local_ip_info("127.0.0.1", 0)
        cluster.append_remote_ip_info(*address)
        overall, _ = instance.link_clusters([cluster])
        assert overall == LLMStatusCode.LLM_SUCCESS, overall


if __name__ == "__main__":
    main()
