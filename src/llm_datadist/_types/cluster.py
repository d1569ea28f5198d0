"""Addresses of the two ends of a link.

Source: api.md 4.9.
"""

from __future__ import annotations

import re
from typing import SupportsIndex, final

from llm_datadist._errors import invalid
from llm_datadist._types.checks import (
    UINT32_MAX,
    check_instance,
    check_int,
    check_uint64,
    wrong_type,
)
from llm_datadist._types.enums import LLMRole
from llm_datadist._types.named_calls import names_calls

__all__ = ["LLMClusterInfo"]

_PORT_MAX = 65535
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# The last label of a host name is not a number: 1.2.3.400 is a mistake, not a name.
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)({_LABEL}\.)*(?![0-9]+\.?\Z){_LABEL}\.?\Z")


@names_calls
@final
class LLMClusterInfo:
    """A peer to link with or to unlink from: its id and the addresses of both ends.

    Source: api.md 4.9.
    """

    __slots__ = ("_local", "_remote", "_remote_cluster_id", "_remote_role_type")

    def __init__(self) -> None:
        self._remote_cluster_id: int | None = None
        self._remote_role_type: LLMRole | None = None
        self._local: list[tuple[str, int]] = []
        self._remote: list[tuple[str, int]] = []

    @property
    def remote_cluster_id(self) -> int | None:
        """Id of the peer, uint64; None while unset, which is not 0."""
        return self._remote_cluster_id

    @remote_cluster_id.setter
    def remote_cluster_id(self, value: int) -> None:
        self._remote_cluster_id = check_uint64("remote_cluster_id", value)

    @property
    def remote_role_type(self) -> LLMRole | None:
        """Role of the peer; ignored."""
        return self._remote_role_type

    @remote_role_type.setter
    def remote_role_type(self, value: LLMRole) -> None:
        self._remote_role_type = check_instance("remote_role_type", value, LLMRole)

    def append_local_ip_info(self, ip: str | int, port: int) -> None:
        """Add a local address.

        Args:
            ip: IPv4 or IPv6 literal, host name, or an IPv4 address as int with the first octet in
                the lowest byte. An address of this machine is used as the source address.
            port: 0 to 65535; ignored.

        Raises:
            TypeError: A wrong type.
            ValueError: An integer out of range.
            LLMException: LLM_PARAM_INVALID: ip is neither an address nor a host name.
        """
        self._local.append(_address("append_local_ip_info", ip, port))

    def append_remote_ip_info(self, ip: str | int, port: int) -> None:
        """Add an address of the peer.

        Args:
            ip: As for append_local_ip_info.
            port: Where the peer listens, 0 to 65535.

        Raises:
            TypeError: A wrong type.
            ValueError: An integer out of range.
            LLMException: LLM_PARAM_INVALID: ip is neither an address nor a host name.
        """
        self._remote.append(_address("append_remote_ip_info", ip, port))

    @property
    def local_ip_info_list(self) -> list[tuple[str, int]]:
        """Local addresses as (ip, port); a new list each time."""
        return list(self._local)

    @property
    def remote_ip_info_list(self) -> list[tuple[str, int]]:
        """Addresses of the peer as (ip, port); a new list each time."""
        return list(self._remote)

    def __repr__(self) -> str:
        return (
            f"LLMClusterInfo(remote_cluster_id={self._remote_cluster_id}, "
            f"remote_role_type={self._remote_role_type}, "
            f"local_ip_info_list={self._local}, remote_ip_info_list={self._remote})"
        )


def _address(operation: str, ip: object, port: SupportsIndex) -> tuple[str, int]:
    return _ip(operation, ip), check_int("port", port, 0, _PORT_MAX)


def _ip(operation: str, ip: object) -> str:
    """Return an address as text."""
    if not isinstance(ip, str):
        try:
            number = check_int("ip", ip, 0, UINT32_MAX)
        except TypeError:
            raise wrong_type("ip", ip, "str or int") from None
        return ".".join(map(str, number.to_bytes(4, "little")))
    if not _HOST_NAME.match(ip):
        import ipaddress  # noqa: PLC0415 - keeps the import of the package short

        try:
            ipaddress.ip_address(ip)
        except ValueError:
            raise invalid(
                operation,
                f"ip {ip!r} is neither an IP address nor a host name",
                "give an IPv4 or IPv6 literal, or a host name",
            ) from None
    return ip
