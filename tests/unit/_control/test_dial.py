"""A dial of the own host where nothing listens."""

from __future__ import annotations

import asyncio
import socket

import pytest

from llm_datadist._control import dial


def test_a_connection_to_itself_is_refused_and_leaves_the_port_free(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = probe.getsockname()
    monkeypatch.setattr(dial, "_bind", lambda sock, source: sock.bind(place))
    with pytest.raises(ConnectionRefusedError, match="refused"):
        asyncio.run(dial.connect_resolved(socket.AF_INET, place, place[0]))
    with socket.socket() as server:
        server.bind(place)  # without SO_REUSEADDR: nothing is left in TIME_WAIT
