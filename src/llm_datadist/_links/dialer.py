"""Setting up a link from the dialing end. Loop thread only."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, final

from msgspec import UNSET

from llm_datadist._control.connection import ControlConnection, PeerClosedError
from llm_datadist._control.dial import connect
from llm_datadist._control.sockets import explained, plain_address, printed
from llm_datadist._control.tls import TlsError, shake_hands
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.call import Call
from llm_datadist._links.context import CLUSTERS, SetupError
from llm_datadist._links.lane_setup import open_lanes
from llm_datadist._links.lane_terms import LaneTerms, all_places
from llm_datadist._links.link import LinkResult, Peer
from llm_datadist._links.state import Relink, Setup, WithdrawnError
from llm_datadist._protocol.codec import Kind, ProtocolError, encode_preamble
from llm_datadist._protocol.handshake import (
    SecretMismatchError,
    Side,
    fresh_nonce,
)
from llm_datadist._protocol.messages import (
    PROTOCOL_VERSION,
    Accept,
    Complete,
    Confirm,
    Existing,
    Hello,
    Ready,
    Welcome,
    Yield,
)

if TYPE_CHECKING:
    import socket

    from llm_datadist._control.deadline import Deadline
    from llm_datadist._control.relay import Relays
    from llm_datadist._control.sockets import Address
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lane_terms import LaneRoute, OpenLanes
    from llm_datadist._links.lifecycle import LinkLifecycle
    from llm_datadist._links.link import Link
    from llm_datadist._protocol.messages import DomainHello

__all__ = ["DialRequest", "dial"]

logger = logging.getLogger("llm_datadist")

_MAX_ATTEMPTS: Final = 8
_STAND_BACK_SECONDS: Final = 1.0  # for those whom a dial has kept out
_FAILED: Final = LLMStatusCode.LLM_LINK_FAILED
_TLS_REMEDY: Final = (
    "give both sides llm.TlsCert, llm.TlsKey and llm.TlsCa, with certificates that are in force "
    "and of the authority that the other side names"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DialRequest:
    """What to dial, and how.

    Attributes:
        address: Of the peer.
        deadline: For all of it.
        expected_cluster_id: Refuse any other peer; None takes any.
        expected_incarnation: The same for its incarnation.
        source_ip: Local ip to connect from; ignored with a warning when it is not ours. domain: Set
        when the link is for a domain. Then a set-up or tear-down of the same link that is
            under way is waited for; without, it is LLM_PROCESSING_LINK.
        relink: Set when a lost link is made again, which has to stand back for calls.
        caller: Set-ups of one caller wait for each other in any case.
        connect_seconds: Limit for connecting alone.
    """

    address: Address
    deadline: Deadline
    expected_cluster_id: int | None = None
    expected_incarnation: int | None = None
    source_ip: str | None = None
    domain: DomainHello | None = None
    relink: Relink | None = None
    caller: object = field(default_factory=object)
    connect_seconds: float = math.inf

    @property
    def holder(self) -> str:
        """What holds the link then."""
        return CLUSTERS if self.domain is None else self.domain.holder


@final
@dataclass(slots=True)
class DialOutcome:
    """A `LinkResult`, whether the link is new, and whether the peer had a say in a failure."""

    result: LinkResult
    is_new: bool = False
    answered: bool = True


class _DialAgainError(Exception):
    """Another set-up of the same link was under way; `first` is what to wait for before dialing."""

    def __init__(self, first: Setup | None, pause: float = 0.0) -> None:
        super().__init__()
        self.first = first
        self.pause = pause


async def dial(context: LinkContext, lifecycle: LinkLifecycle, request: DialRequest) -> DialOutcome:
    """Link to the instance at an address, or find that it is linked already. Never raises."""
    attempt = _Dial(context, lifecycle, request)
    place = printed(request.address)
    try:
        link = await request.deadline.limit(attempt.run())
    except SetupError as error:
        result, answered = LinkResult(error.status, f"{place}: {error.reason}"), error.answered
    except asyncio.TimeoutError:
        result = LinkResult(
            LLMStatusCode.LLM_TIMEOUT,
            f"{place}: no answer within {request.deadline.seconds * 1000:.0f} ms while "
            f"{attempt.step}; check that an instance listens there and is not frozen, or give it a "
            "longer timeout",
        )
        answered = False
    else:
        return DialOutcome(LinkResult(LLMStatusCode.LLM_SUCCESS, link=link), attempt.is_new)
    level = logging.INFO if request.relink is None else logging.DEBUG
    logger.log(level, "dial failed [%s]: %s", result.status.name, result.reason)
    return DialOutcome(result, answered=answered)


@final
class _Dial:
    """One dial, over as many connections as it takes."""

    def __init__(
        self, context: LinkContext, lifecycle: LinkLifecycle, request: DialRequest
    ) -> None:
        self._context = context
        self._index = context.index
        self._lifecycle = lifecycle
        self._request = request
        self._source: Address | None = None  # of the connection that there is
        self.step = "connecting"
        self.is_new = False

    async def run(self) -> Link:
        """Return the link; SetupError says why there is none."""
        attempts = 0
        while attempts < _MAX_ATTEMPTS:
            try:
                return await self._attempt()
            except _DialAgainError as again:
                self.step = "another set-up of the same link is under way"
                if again.first is None:
                    attempts += 1
                    await asyncio.sleep(again.pause)
                else:  # as many of those as there are; only the deadline bounds them
                    await again.first.wait_or_withdraw()
        raise SetupError(_FAILED, "the link keeps changing while it is set up; link again")

    async def _attempt(self) -> Link:
        self.step = "connecting"
        sock, route = await self._connect()
        connection = await self._open(sock)
        call = Call(self._context, connection)
        try:
            return await self._shake_hands(call, route)
        except SetupError as error:
            call.give_up(error.status, error.reason)
            raise
        except _DialAgainError:
            call.give_up(LLMStatusCode.LLM_PROCESSING_LINK, "another set-up of the link goes first")
            raise
        except asyncio.CancelledError:  # out of time, or finalized
            if call.made is not None:  # in the last moment: both ends have the link
                return call.made
            call.give_up(LLMStatusCode.LLM_PROCESSING_LINK, "the dial was given up")
            raise
        except SecretMismatchError:
            raise SetupError(
                _FAILED,
                "the peer has another secret; configure the same link_secret on both sides",
            ) from None
        except TlsError as error:
            raise SetupError(_FAILED, f"TLS: {error}; {_TLS_REMEDY}") from error
        except ProtocolError as error:
            raise SetupError(
                _FAILED,
                f"what answers is no llm-datadist of this version ({error}); check address and "
                "versions",
            ) from error
        except PeerClosedError as error:
            raise SetupError(
                _FAILED,
                f"{error} while {self.step}; see the peer's log, and check that an llm-datadist "
                "instance listens there",
                answered=False,
            ) from error
        finally:
            if call.made is None:
                connection.close()

    async def _open(self, sock: socket.socket) -> ControlConnection:
        """Make a control connection of a connected socket, inside TLS if that is configured."""
        tls, session = self._context.tls, None
        if tls is not None:
            self.step = "the TLS handshake is under way"
            try:
                session = await shake_hands(sock, tls.dialing, accepting=False)
            except TlsError as error:
                sock.close()
                raise SetupError(_FAILED, f"TLS: {error}; {_TLS_REMEDY}") from error
            except BaseException:
                sock.close()
                raise
        return await ControlConnection.open(sock, self._context.silence_ms, session)

    async def _connect(self) -> tuple[socket.socket, LaneRoute]:
        """Return a connection that is a control connection by its preamble, and the way it went."""
        request = self._request
        kind = Kind.CONTROL if self._context.tls is None else Kind.CONTROL_TLS
        host = request.address[0]
        self.step = f"host {host!r} was looked up and the name server did not answer"
        try:
            sock = await connect(
                request.address,
                request.deadline.at_most(request.connect_seconds),
                self._context.resolvers,
                request.source_ip,
                lambda: setattr(self, "step", "connecting"),
            )
        except OSError as error:
            raise SetupError(
                _FAILED,
                f"cannot connect: {explained(error)}"
                if error.errno == errno.EMFILE  # which says what to do
                else f"cannot connect: {explained(error)}; check that the peer listens there and "
                "that the network lets it through",
                answered=False,
            ) from error
        try:
            source = None if request.source_ip is None else plain_address(sock.getsockname())[0]
            route = (sock.family, sock.getpeername(), source)
            self._source = plain_address(sock.getsockname())
            await asyncio.get_running_loop().sock_sendall(sock, encode_preamble(kind))
        except OSError as error:
            sock.close()
            raise SetupError(
                _FAILED,
                f"closed at once ({explained(error)}); see the peer's log, and check that an "
                "llm-datadist instance listens there",
                answered=False,
            ) from error
        except BaseException:
            sock.close()
            raise
        return sock, route

    async def _shake_hands(self, call: Call, route: LaneRoute) -> Link:
        self.step = "waiting for the peer's greeting"
        call.say(self._hello())
        welcome = await call.hear(Welcome)
        self._check_identity(welcome)
        link_id = next(self._context.link_ids)
        endpoint = await self._context.endpoint(link_id)
        setup = await self._claim(welcome)
        try:
            call.say(call.shake.prove(Confirm(endpoint=endpoint)))
            agreeing = self._agree(call, route, welcome, link_id, setup)
            return await setup.unless_withdrawn(agreeing)
        except WithdrawnError:  # what answers may stall in another's name
            raise _DialAgainError(None, _STAND_BACK_SECONDS) from None
        finally:
            del self._index.dials[setup.incarnation]
            setup.ended.set()

    async def _agree(
        self, call: Call, route: LaneRoute, welcome: Welcome, link_id: int, setup: Setup
    ) -> Link:
        self.step = "waiting for the peer's consent"
        answer = await call.hear(Accept, Existing, Yield)
        if isinstance(answer, Accept):
            setup.accepted = True
            call.connection.authenticate(call.shake.control_keys())
            peer = Peer(
                cluster_id=welcome.cluster_id,
                incarnation=welcome.incarnation,
                address=self._request.address,
                dialed=True,
                is_self=welcome.incarnation == self._context.incarnation,
                page_proof=call.shake.page_proof(Side.ACCEPTOR),
            )
            self._context.delegate.show_proof(link_id, call.shake.page_proof(Side.DIALER))
            return await self._complete(call, route, peer, link_id, answer)
        if isinstance(answer, Yield):
            self.step = "waiting for the peer, which is dialing us"
            await call.connection.wait_closed_by_peer()
            raise _DialAgainError(None)
        return self._existing(welcome)

    def _hello(self) -> Hello:
        context, request = self._context, self._request
        return Hello(
            version=PROTOCOL_VERSION,
            cluster_id=context.cluster_id,
            incarnation=context.incarnation,
            nonce=fresh_nonce(),
            expected_cluster_id=request.expected_cluster_id,
            has_secret=context.secret is not None,
            listen=context.listen_address,
            num_lanes=context.num_lanes,
            domain=request.domain,
            relinks=None if request.relink is None else request.relink.lost.terms.session,
            encrypt_lanes=True if context.tls is not None and context.tls.lanes else UNSET,
        )

    def _check_identity(self, welcome: Welcome) -> None:
        expected = self._request.expected_cluster_id
        if expected is not None and welcome.cluster_id != expected:
            raise SetupError(
                _FAILED,
                f"expected cluster {expected}, but the instance there is cluster "
                f"{welcome.cluster_id}; correct remote_cluster_id or the address",
            )
        incarnation = self._request.expected_incarnation
        if incarnation is not None and welcome.incarnation != incarnation:
            raise SetupError(
                _FAILED,
                f"another instance (cluster {welcome.cluster_id}) than at the first of the "
                "addresses; give the addresses of one instance",
            )

    async def _claim(self, welcome: Welcome) -> Setup:
        """Bind this end to the set-up, once nothing else stands in its way."""
        self.step = "waiting for an earlier link with the same cluster id to end"
        cluster_id, incarnation = welcome.cluster_id, welcome.incarnation
        while True:
            self._yield_to_setups(incarnation)
            rival = self._index.rival_setup(cluster_id, incarnation)
            leaving = self._index.leaving_from(cluster_id)
            link = self._index.links.get(cluster_id)
            if rival is not None:
                await rival.wait_or_withdraw()
            elif leaving is not None:
                if self._request.domain is None and leaving.is_unlinked_locally:
                    _processing(cluster_id, "taken down")
                await leaving.gone.wait()
            elif link is not None and link.incarnation != incarnation:
                if await self._lifecycle.is_alive(link):
                    raise SetupError(
                        LLMStatusCode.LLM_ALREADY_LINK,
                        f"cluster id {cluster_id} is linked to another live instance at "
                        f"{printed(link.address)}; unlink that one or give the instances "
                        "different ids",
                    )
                await self._lifecycle.drop(link, "it does not answer and another took its id")
            else:
                caller = self._request.relink or self._request.caller
                setup = Setup(cluster_id, incarnation, caller, self._source)
                self._index.dials[incarnation] = setup
                return setup

    def _yield_to_setups(self, incarnation: int) -> None:
        own = self._index.dials.get(incarnation)
        if own is not None:
            if own.is_stalled:
                own.withdrawn.set()
                raise _DialAgainError(own)
            waits = self._request.domain is not None or own.caller is self._request.caller
            if not waits and not isinstance(own.caller, Relink):
                _processing(own.cluster_id, "set up by another call")
            raise _DialAgainError(own)
        inbound = self._index.inbounds.get(incarnation)
        if inbound is not None and incarnation != self._context.incarnation:
            raise _DialAgainError(inbound)

    def _existing(self, welcome: Welcome) -> Link:
        """The peer has just seen our link alive."""
        link = self._index.links.get(welcome.cluster_id)
        if link is None or link.incarnation != welcome.incarnation:
            raise _DialAgainError(None)
        link.holders |= {self._request.holder}
        link.addresses.add(self._request.address)
        return self._found(link)

    def _found(self, link: Link) -> Link:
        """Remember where a call of link_clusters has found the peer."""
        if self._request.domain is None:
            link.dialed_addresses[self._request.address] = self._request.source_ip
        return link

    async def _complete(
        self, call: Call, route: LaneRoute, peer: Peer, link_id: int, accept: Accept
    ) -> Link:
        stale = self._index.links.get(peer.cluster_id)
        if stale is not None:  # the peer, who would know, has none: if this is the peer
            if await self._lifecycle.is_alive(stale):
                raise SetupError(
                    LLMStatusCode.LLM_ALREADY_LINK,
                    f"what answers takes itself for cluster {peer.cluster_id}, whose link to "
                    f"{printed(stale.address)} is alive; correct the address",
                )
            await self._lifecycle.drop(stale, "the peer no longer has this link", died=False)
        self.step = "opening lanes"
        relays = self._agreed_relays(accept)
        terms = LaneTerms(accept.num_lanes, accept.session, call.shake.lane_key(), route, relays)
        lanes = await self._open_lanes(route, terms)
        self.step = "waiting for the peer to complete the link"
        connecting = self._context.begin_connect(peer, link_id, accept.endpoint, lanes)
        connection, holder = call.connection, self._request.holder
        resolved = plain_address(route[1])
        try:
            call.say(Complete())
            await call.hear(Ready)  # first, because the peer has to be told differently after it
            data = await connecting.data()
            link = self._lifecycle.install(
                peer, link_id, data, connection, terms, holder, [resolved]
            )
        except BaseException:
            connecting.undo()
            raise
        call.made = self._found(link)
        self.is_new = True
        return link

    def _agreed_relays(self, accept: Accept) -> Relays | None:
        """Return what encrypts the lanes; ProtocolError when the peer does not keep to the rule."""
        tls, encrypted = self._context.tls, accept.encrypt_lanes is True
        if encrypted and tls is None:
            raise ProtocolError("encrypted lanes of a link outside TLS")
        if not encrypted and tls is not None and tls.lanes:
            raise ProtocolError("no encrypted lanes, which were asked for")
        return self._context.relays if encrypted else None

    @staticmethod
    async def _open_lanes(route: LaneRoute, terms: LaneTerms) -> OpenLanes:
        try:
            return await open_lanes(route, terms, all_places(terms.num_lanes))
        except (OSError, EOFError) as error:
            raise SetupError(
                _FAILED,
                f"a data lane broke while it was opened: {_words(error)}; see the peer's log",
            ) from error


def _words(error: OSError | EOFError) -> str:
    return explained(error) if isinstance(error, OSError) else str(error)


def _processing(cluster_id: int, what: str) -> NoReturn:
    raise SetupError(
        LLMStatusCode.LLM_PROCESSING_LINK,
        f"the link to cluster {cluster_id} is being {what} right now; retry soon",
    )
