"""A link table in a process of its own: `child.py CLUSTER_ID LISTEN_PORT MODE`.

Prints where it listens, then answers commands, one JSON array a line.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `support`

from llm_datadist._links import LinkTable
from llm_datadist._options.settings import Config
from llm_datadist._types import LLMClusterInfo
from support.planes import EmptyPlane


class Plane(EmptyPlane):
    def connect(self, peer, link_id, endpoint, client_lanes, server_lanes):
        return [lane.fd for lane in (*client_lanes, *server_lanes)]

    def disconnect(self, data):
        for fd in data:
            os.close(fd)


def say(value):
    print(json.dumps(value), flush=True)


def main():
    cluster_id, port, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    table = LinkTable(cluster_id, Config(lanes_per_link=2), secrets.randbits(63), Plane())
    if mode == "mute":
        table.hooks.on_request = lambda link, body: time.sleep(60)
    else:
        table.hooks.on_request = lambda link, body: body
    table.start(("127.0.0.1", port))
    say(table.listen_address)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "link":
            info = LLMClusterInfo()
            info.append_remote_ip_info(*arguments)
            (result,) = table.link_clusters([info], 5000)
            say([result.status.name, result.reason])
        elif command == "linked":
            say([link.cluster_id for link in table.links()])
        elif command == "fork":
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            say(pid)
        elif command == "close":
            table.close()
            say("closed")


main()
