"""Metadata that the NIXL backends of two instances exchange when a link is made."""

from __future__ import annotations

import secrets
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from llm_datadist._backends.base import Unavailable
from llm_datadist._protocol.codec import DECODE_ERRORS

GRANTED_SLOTS: Final = 2
"""Landing slots that each end of a link grants the other."""

MAX_ADDRESS: Final = (1 << 63) - 1
"""Highest address of a process: an address plus a size never exceeds 64 bits."""

SALT_BYTES: Final = 16

Address = Annotated[int, Meta(ge=0, le=MAX_ADDRESS)]
Guard = tuple[Annotated[int, Meta(ge=0, le=0xFFFFFFFF)], Annotated[int, Meta(ge=0)]]
Blob = Annotated[bytes, Meta(max_length=16 << 10)]


class NixlMetadata(msgspec.Struct, array_like=True, frozen=True):
    """What a peer needs to connect. Each field has a width and a limit.

    Attributes:
        agent, engine: Names.
        connection: The engine's connection metadata, without regions.
        rdma: Whether the host has an RDMA device.
        log_address, log_ref: The log of regions, which the peer reads over lanes.
        log_salt: Part of the key of the log's records; see `region_records.log_key`.
        landing_address, landing_slots, landing_metadata: Slots that the peer may write.
    """

    agent: Annotated[str, Meta(max_length=64)]
    engine: Annotated[str, Meta(max_length=32)]
    connection: Blob
    rdma: bool
    log_address: Address
    log_ref: Guard
    log_salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    landing_address: Address = 0
    landing_slots: Annotated[int, Meta(ge=0, le=GRANTED_SLOTS)] = 0
    landing_metadata: Blob = b""


def agent_name(incarnation: int) -> str:
    """Return a new name for the agent of an instance."""
    return f"{_prefix(incarnation)}{secrets.token_hex(4)}"


def read_metadata(data: bytes | None, incarnation: int, engine: str) -> NixlMetadata:
    """Decode and check the metadata of a peer's backend.

    Args:
        data: As received; None if the peer has no such backend.
        incarnation: Of the peer.
        engine: Name of the local engine.

    Raises:
        Unavailable: There is no metadata, it is malformed, or the engines differ.
    """
    if data is None:
        raise Unavailable("the peer does not offer it")
    try:
        metadata = msgspec.msgpack.decode(data, type=NixlMetadata)
    except DECODE_ERRORS as error:
        raise Unavailable(f"the peer's description cannot be read ({error})") from error
    if metadata.engine != engine:
        raise Unavailable(f"the engine is {engine} here and {metadata.engine!a} at the peer")
    if not metadata.agent.startswith(_prefix(incarnation)):
        # The engine identifies peers by these names: no peer may use the name of another.
        raise Unavailable(f"the peer's agent has the name of another instance ({metadata.agent!a})")
    return metadata


def _prefix(incarnation: int) -> str:
    return f"llm-datadist-{incarnation:016x}-"
