"""Encrypted lanes without links: two ends with relays between them, in this process."""

from __future__ import annotations

import socket

from llm_datadist._control.relay import Relays
from llm_datadist._control.tls import SecureSocket, TlsSession
from llm_datadist._options.parse import parse_options
from support.setup import options_of


def tls_of(properties):
    """Return the contexts for properties of LLMConfig."""
    return parse_options(options_of(listen=None, **properties), {}).tls


def shaken(tls):
    """Return the sessions of a dialing and an accepting end past their handshake."""
    near, far = TlsSession(tls.dialing, accepting=False), TlsSession(tls.accepting, accepting=True)
    done = [False, False]
    while not all(done):
        for i, (local, remote) in enumerate(((near, far), (far, near))):
            done[i] = local.shake()
            remote.feed(local.records())
    return near, far


class Carried:
    """Makes pairs of encrypted lanes: (near, far) sockets as the native core would have them."""

    def __init__(self, tls):
        self.tls = tls
        self.relays = Relays("test", tls.dialing)
        self.wires = []  # the TCP sockets of the last pair

    def pair(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        self.wires = [near, far]
        ends = []
        for sock, session, serves in zip(self.wires, shaken(self.tls), (False, True), strict=True):
            sock.setblocking(False)
            lane = self.relays.carry(SecureSocket(sock, session), serves=serves)
            ends.append(socket.socket(fileno=lane.detach()))
        return ends

    def close(self):
        self.relays.close()
