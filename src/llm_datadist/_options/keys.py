"""Keys of the option dictionary, and names of the environment variables that fill in for them.

Source: api.md 3.
"""

from __future__ import annotations

from typing import Final

DEVICE_ID: Final = "ge.exec.deviceId"
SESSION_DEVICE_ID: Final = "ge.session_device_id"
FLOW_GRAPH_MEM_MAX_SIZE: Final = "ge.flowGraphMemMaxSize"
RESOURCE_PATH: Final = "ge.resourceConfigPath"
AUTO_RELINK: Final = "llm.AutoRelink"
BUF_POOL: Final = "llm.BufPoolCfg"
CHECKSUM: Final = "llm.Checksum"
CLUSTER_INFO: Final = "llm.ClusterInfo"
DEVICE: Final = "llm.Device"
ENABLE_CACHE_MANAGER: Final = "llm.EnableCacheManager"
ENABLE_REMOTE_CACHE_ACCESSIBLE: Final = "llm.EnableRemoteCacheAccessible"
ENABLE_SWITCH_ROLE: Final = "llm.EnableSwitchRole"
GLOBAL_RESOURCE_CONFIG: Final = "llm.GlobalResourceConfig"
HEARTBEAT: Final = "llm.HeartbeatMs"
HOST_MEM_POOL: Final = "llm.HostMemPoolConfig"
LANES_PER_LINK: Final = "llm.LanesPerLink"
LINK_BASE_PORT: Final = "llm.LinkBasePort"
LINK_RETRY_COUNT: Final = "llm.LinkRetryCount"
LINK_SECRET: Final = "llm.LinkSecret"
LINK_TOTAL_TIME: Final = "llm.LinkTotalTime"
LISTEN: Final = "llm.listenIpInfo"
LOCAL_COMM_RES: Final = "llm.LocalCommRes"
MAX_REGISTERED_ADDRS: Final = "llm.MaxRegisteredAddrs"
MEM_POOL: Final = "llm.MemPoolConfig"
MEM_UTILIZATION: Final = "llm.MemUtilization"
OUTPUT_MAX_SIZE: Final = "llm.OutputMaxSize"
PEER_TIMEOUT: Final = "llm.PeerTimeoutMs"
RDMA_SERVICE_LEVEL: Final = "llm.RdmaServiceLevel"
RDMA_TRAFFIC_CLASS: Final = "llm.RdmaTrafficClass"
SYNC_KV_TIMEOUT: Final = "llm.SyncKvCacheWaitTime"
TRANSFER_BACKEND: Final = "llm.TransferBackend"
TRANSFER_THREADS: Final = "llm.TransferThreads"

ENV_BASE_PORT: Final = "HCCL_IF_BASE_PORT"
ENV_CONNECT_TIMEOUT: Final = "HCCL_CONNECT_TIMEOUT"
ENV_RDMA_SL: Final = "HCCL_RDMA_SL"
ENV_RDMA_TC: Final = "HCCL_RDMA_TC"
ENV_SECRET: Final = "LLM_DATADIST_SECRET"
ENV_SECRET_FILE: Final = "LLM_DATADIST_SECRET_FILE"
