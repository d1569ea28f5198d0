"""A process with an instance and a cache in a GPU's memory, for tests that are its peer."""

import json
import os
import subprocess
import sys

from llm_datadist import BlocksCacheKey
from support.gpu import HERE

TIMEOUT_MS = 2000
KEY = BlocksCacheKey(1, 0)


class OwnerProcess:
    """Runs tests/devices/owner_process.py; `ask` calls a method of its Owner.

    Args:
        backend: Its transfer_backend.
    """

    def __init__(self, backend="host"):
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "owner_process.py"), backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.address = tuple(self._answer())

    def ask(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.communicate()


def device_facts(side):
    return side.instance.describe_link(1)["device_channel"]
