"""Rank tables: addresses of the members of a domain.

A rank table is a JSON text, an argument of `link`. Only the fields with the addresses of ranks are
read. A missing field is no error in itself; a present field must be valid.

Source: api.md 4.6.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, final

from llm_datadist._errors import LLMStatusCode, fail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Address", "RankTable", "parse_rank_table"]

Address = tuple[str, int]

_VERSIONS = ("1.0", "1.2")
_LOOPBACK = "127.0.0.1"
# A string of JSON (kept), or a comma before a closing bracket (dropped).
_STRING_OR_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])', re.DOTALL)


def _refuse(problem: str, remedy: str = "correct the rank table") -> NoReturn:
    raise fail(LLMStatusCode.LLM_PARAM_INVALID, "link", f"rank_table: {problem}", remedy)


@final
@dataclass(frozen=True, slots=True)
class _Device:
    """One device of the table, on which one rank runs."""

    device_id: int
    hosts: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class RankTable:
    """A parsed rank table.

    Attributes:
        devices: Rank to the device that it runs on.
    """

    devices: Mapping[int, _Device]

    def addresses(self, rank: int, base_port: int) -> tuple[Address, ...]:
        """Return the addresses at which `rank` may listen, the preferred one first.

        Empty if the table has none.

        Args:
            rank: A rank_id of the table.
            base_port: The port of device 0.

        Raises:
            LLMException: LLM_PARAM_INVALID: base_port + device_id is not a valid port.
        """
        device = self.devices.get(rank)
        if device is None:
            return ()
        port = base_port + device.device_id
        if port > 65535:
            _refuse(
                f"rank {rank} has device_id {device.device_id}, and link_base_port {base_port} + "
                f"{device.device_id} is beyond port 65535",
                "set link_base_port lower",
            )
        return tuple((host, port) for host in device.hosts)


def parse_rank_table(text: str) -> RankTable:
    """Parse the text of a rank table: as strict JSON, else as JSON with trailing commas.

    Raises:
        LLMException: LLM_PARAM_INVALID: not a JSON object, an unknown version, or an invalid
            field.
    """
    table = _loads(text)
    if not isinstance(table, dict):
        _refuse(f"must be a JSON object, got {type(table).__name__}")
    version = table.get("version", _VERSIONS[0])
    if version not in _VERSIONS:
        _refuse(f"version {version!r} is not one of {', '.join(_VERSIONS)}")
    servers = list(_objects(table, "server_list", ""))
    devices: dict[int, _Device] = {}
    for where, server in servers:
        server_hosts = _server_hosts(server, where)
        for place, device in _objects(server, "device", f"{where}."):
            rank = _number(device, "rank_id", place)
            device_id = _number(device, "device_id", place)
            hosts = [*server_hosts, *_literal(_text(device, "device_ip", place))]
            if len(servers) == 1:
                hosts.append(_LOOPBACK)
            if rank is None:
                continue
            if rank in devices:
                _refuse(f"{place}: rank_id {rank} occurs twice")
            devices[rank] = _Device(device_id or 0, tuple(dict.fromkeys(hosts)))
    return RankTable(devices)


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        tolerated = _STRING_OR_TRAILING_COMMA.sub(lambda match: match[1] or "", text)
    try:
        return json.loads(tolerated)
    except (ValueError, RecursionError) as error:
        _refuse(f"not JSON ({error})")


def _objects(
    owner: dict[str, object], name: str, path: str
) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield path and value of each object in the list `name` of `owner`."""
    values = owner.get(name, [])
    if not isinstance(values, list):
        _refuse(f"{path}{name} must be a list, got {type(values).__name__}")
    for index, value in enumerate(values):
        where = f"{path}{name}[{index}]"
        if not isinstance(value, dict):
            _refuse(f"{where} must be an object, got {type(value).__name__}")
        yield where, value


def _server_hosts(server: dict[str, object], where: str) -> list[str]:
    host_ip = _text(server, "host_ip", where)
    try:
        host_ip.encode("idna")  # as the resolver encodes it
    except UnicodeError as error:
        _refuse(f"{where}.host_ip {host_ip!r} is neither an IP address nor a host name ({error})")
    return [*([host_ip] if host_ip else []), *_literal(_text(server, "server_id", where))]


def _text(owner: dict[str, object], name: str, where: str) -> str:
    value = owner.get(name, "")
    if not isinstance(value, str):
        _refuse(f"{where}.{name} must be a string, got {type(value).__name__} ({value!r})")
    return value.strip()


def _number(owner: dict[str, object], name: str, where: str) -> int | None:
    """Return a field that holds a decimal number as a string (a JSON integer is accepted too)."""
    value = owner.get(name)
    if value is None:
        return None
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,10}", value.strip()):
        _refuse(f"{where}.{name} must be a decimal number in a string, got {value!r}")
    return int(value)


def _literal(text: str) -> tuple[str, ...]:
    """Return `text` when it is an IP literal (a server_id may be any name, a device_ip empty)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return ()
    return (text,)
