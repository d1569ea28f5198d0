"""Connect to a peer: open the control connection of a dial, with TLS if configured."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_datadist._control.connection import ControlConnection
from llm_datadist._control.dial import connect
from llm_datadist._control.sockets import explained, plain_address
from llm_datadist._control.tls import TlsError, shake_hands
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import SetupError
from llm_datadist._protocol.codec import Kind, encode_preamble

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._control.sockets import Address
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.dial_request import DialRequest
    from llm_datadist._links.lane_terms import LaneRoute

__all__ = ["CONNECTING", "LOOKING_UP", "DialConnection", "open_connection", "tls_failed"]

_FAILED: Final = LLMStatusCode.LLM_LINK_FAILED
#: Steps of a dial that have a text of their own when they time out.
LOOKING_UP: Final = "looking up the host name"
CONNECTING: Final = "connecting"
_CHECK_LISTENER: Final = "see the peer's log, and check that an llm-datadist instance listens there"


class DialConnection(NamedTuple):
    """A new control connection, the route that its lanes take too, and its local address."""

    connection: ControlConnection
    route: LaneRoute
    source: Address


async def open_connection(
    context: LinkContext, request: DialRequest, on_step: Callable[[str], object]
) -> DialConnection:
    """Connect to the peer of a dial and send the preamble.

    Args:
        context: The instance.
        request: The address to connect to, and the time limits.
        on_step: Called with a text before each step, for the message of a timeout.

    Raises:
        SetupError: The connection cannot be made.
        asyncio.TimeoutError: There was no answer in time.
    """
    sock = await _connect(context, request, on_step)
    try:
        source_ip = None if request.source_ip is None else plain_address(sock.getsockname())[0]
        route = (sock.family, sock.getpeername(), source_ip)
        source = plain_address(sock.getsockname())
        kind = Kind.CONTROL if context.tls is None else Kind.CONTROL_TLS
        await asyncio.get_running_loop().sock_sendall(sock, encode_preamble(kind))
        session = None
        if context.tls is not None:
            on_step("the TLS handshake is under way")
            session = await shake_hands(sock, context.tls.dialing, accepting=False)
    except TlsError as error:
        sock.close()
        raise tls_failed(error) from error
    except OSError as error:
        sock.close()
        raise SetupError(
            _FAILED, f"closed at once ({explained(error)}); {_CHECK_LISTENER}", answered=False
        ) from error
    except BaseException:
        sock.close()
        raise
    connection = await ControlConnection.open(sock, context.silence_ms, session)
    return DialConnection(connection, route, source)


def tls_failed(error: TlsError) -> SetupError:
    """Return the exception of a dial whose TLS session failed."""
    return SetupError(
        _FAILED,
        f"TLS: {error}; give both sides llm.TlsCert, llm.TlsKey and llm.TlsCa, with certificates "
        "that are in force and of the authority that the other side names",
    )


async def _connect(
    context: LinkContext, request: DialRequest, on_step: Callable[[str], object]
) -> socket.socket:
    host, port = request.address
    if port == 0:
        problem = "nothing can listen at port 0; give the port of the peer's listen_address"
        raise SetupError(_FAILED, problem, answered=False)
    on_step(LOOKING_UP)
    try:
        return await connect(
            request.address,
            request.deadline.at_most(request.connect_seconds),
            context.resolvers,
            request.source_ip,
            lambda: on_step(CONNECTING),
        )
    except socket.gaierror as error:
        reason = (
            f"host name {host!r} cannot be resolved ({explained(error)}); correct it, or give an "
            "IP address"
        )
        raise SetupError(_FAILED, reason, answered=False) from error
    except OSError as error:
        reason = f"cannot connect: {explained(error)}"
        if error.errno != errno.EMFILE:  # that one's text has a remedy
            reason += "; check that the peer listens there and that the network lets it through"
        raise SetupError(_FAILED, _with_end(context, request, reason), answered=False) from error


def _with_end(context: LinkContext, request: DialRequest, reason: str) -> str:
    """Name the instance that was linked at the address before, if one was, and how that ended."""
    found = context.index.end_at(request.address)
    if found is None:
        return reason
    cluster_id, end = found
    return f"the link to cluster {cluster_id} at this address ended: {end}; {reason}"
