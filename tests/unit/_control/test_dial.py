"""A dial of the own host where nothing listens; addresses with zones."""

from __future__ import annotations

import asyncio
import socket

import pytest

from llm_datadist._control import dial
from llm_datadist._control.sockets import plain_address, printed


def test_a_connection_to_itself_is_refused_and_leaves_the_port_free(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = probe.getsockname()
    monkeypatch.setattr(dial, "_bind", lambda sock, source: sock.bind(place))
    with pytest.raises(ConnectionRefusedError, match="refused"):
        asyncio.run(dial.connect_resolved(socket.AF_INET, place, place[0]))
    with socket.socket() as server:
        server.bind(place)  # without SO_REUSEADDR: nothing is left in TIME_WAIT


def test_an_address_keeps_its_zone():
    name = socket.if_indextoname(1)
    address = plain_address(("fe80::1", 26000, 0, 1))
    assert address == (f"fe80::1%{name}", 26000)
    assert printed(address) == f"[fe80::1%{name}]:26000"
    assert socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][4][3] == 1
    assert plain_address(("fe80::1", 1, 0, 99999)) == ("fe80::1%99999", 1)
    assert plain_address(("2001:db8::1", 1, 0, 0)) == ("2001:db8::1", 1)
    assert plain_address(("::ffff:192.0.2.1", 1, 0, 0)) == ("192.0.2.1", 1)


def test_a_source_of_another_family_is_refused():
    with socket.socket() as sock, pytest.raises(OSError, match="not an address of this host"):
        dial._bind(sock, "::1")
