"""Program that loads NIXL's wheel and makes an agent with UCX; prints what it found as JSON.

Runs in a process of its own: a wheel that does not fit the machine can end the process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def main() -> None:
    """Load the bindings of the package that the first argument names."""
    os.environ.setdefault("UCX_ERROR_SIGNALS", "")
    if sys.argv[2:] != ["rdma"]:  # the module crashes where there is no device
        os.environ.setdefault("UCX_MODULES", "^ib")
    found: dict[str, object] = {"plugins": [], "problem": ""}
    try:
        bindings = importlib.import_module(f"{sys.argv[1]}._bindings")
        config = bindings.nixlAgentConfig()
        config.useProgThread = config.useListenThread = config.captureTelemetry = False
        agent = bindings.nixlAgent(f"llm-datadist-doctor-{os.getpid()}", config)
        found["plugins"] = sorted(map(str, agent.getAvailPlugins()))
        agent.createBackend("UCX", {"num_workers": "1"})
    except Exception as error:
        found["problem"] = f"{type(error).__name__}: {error}"
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # skip the engine's own cleanup


if __name__ == "__main__":
    main()
