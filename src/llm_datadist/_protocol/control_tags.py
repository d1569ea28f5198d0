"""Tags that authenticate the control messages after the Accept of a handshake, without I/O.

Each frame after the Accept is followed by 16 bytes: HMAC-SHA256, truncated, over the number of the
frame in its direction (u64, from 0) and the frame, under the key of that direction. Without a
secret and without TLS, anyone who can read the handshake can compute the keys.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final, NamedTuple, final

from llm_datadist._protocol.codec import ProtocolError

__all__ = ["TAG_BYTES", "ControlKeys", "ControlTags"]

TAG_BYTES: Final = 16
_NUMBER: Final = struct.Struct("<Q")


class ControlKeys(NamedTuple):
    """Keys of the tags of a control connection at one end: for sending and for receiving."""

    send: bytes
    receive: bytes


@final
class ControlTags:
    """Makes and checks the tags of one connection at one end. Not thread-safe.

    Args:
        keys: Of `Handshake.control_keys`.
    """

    def __init__(self, keys: ControlKeys) -> None:
        self._keys = keys
        self._num_sent = 0
        self._num_received = 0

    def tagged(self, frame: bytes) -> bytes:
        """Return the next frame to send, followed by its tag."""
        tag = _tag(self._keys.send, self._num_sent, frame)
        self._num_sent += 1
        return frame + tag

    def check(self, frame: bytes, tag: bytes) -> None:
        """Check the tag of the next frame that was received.

        Raises:
            ProtocolError: A frame was forged, changed, repeated or dropped on the way.
        """
        expected = _tag(self._keys.receive, self._num_received, frame)
        self._num_received += 1
        if not hmac.compare_digest(tag, expected):
            raise ProtocolError("a control message has a wrong tag: it is not the peer's")


def _tag(key: bytes, number: int, frame: bytes) -> bytes:
    return hmac.digest(key, _NUMBER.pack(number) + frame, "sha256")[:TAG_BYTES]
