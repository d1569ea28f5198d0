"""The target of a link in a process of its own; does what it is told, line by line."""

import json
import sys

import numpy as np

from llm_datadist import _native


def main():
    size = int(sys.argv[1])
    node = _native.Node(99, 1024, 1 << 16)
    server = _native.LaneServer(node)
    memory = np.full(size, 5, np.uint8)
    entry = node.open_entry(
        np.array([memory.ctypes.data], np.uint64), np.array([size], np.uint64), True
    )
    for fd in sys.argv[2:]:
        server.serve(_native.LaneSocket(int(fd), bytes(16), bytes(16)), 7)

    def tell(answer):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    tell({"address": memory.ctypes.data, "entry": entry})
    host = None
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "attach_host":
            *address, proof = arguments
            host = _native.HostPeer(node, *address, bytes.fromhex(proof))
            server.attach_host(7, host)
            tell(True)
        elif command == "count":
            tell(int((memory == arguments[0]).sum()))
        elif command == "lanes":
            tell(server.link_lanes(7))
        elif command == "close_entry":
            tell(node.close_entry(*entry))
    del host


main()
