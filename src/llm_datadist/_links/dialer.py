"""Set up a link from the dialing end. Loop thread only."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, final

from msgspec import UNSET

from llm_datadist._control.backoff import Backoff
from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.sockets import explained, plain_address, printed
from llm_datadist._control.tls import TlsError
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import Connecting, SetupError
from llm_datadist._links.dial_connection import (
    CONNECTING,
    LOOKING_UP,
    open_connection,
    tls_failed,
)
from llm_datadist._links.dial_request import DialOutcome, DialRequest
from llm_datadist._links.handshake_stream import HandshakeStream
from llm_datadist._links.lane_setup import open_lanes
from llm_datadist._links.lane_terms import LaneTerms, all_places
from llm_datadist._links.link import LinkResult, Peer
from llm_datadist._links.state import Setup, WithdrawnError
from llm_datadist._protocol.codec import ProtocolError
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
    from llm_datadist._control.deadline import Deadline
    from llm_datadist._control.relay import Relays
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.dial_connection import DialConnection
    from llm_datadist._links.lane_terms import LaneRoute, OpenLanes
    from llm_datadist._links.lifecycle import LinkLifecycle
    from llm_datadist._links.link import Link

__all__ = ["dial"]

logger = logging.getLogger("llm_datadist")

_MAX_ATTEMPTS: Final = 8
_WITHDRAWN_SECONDS: Final = 1.0  # pause of a withdrawn dial, in favor of those that it delayed
#: Pauses of a call whose peer is setting up or taking down the same link, in seconds.
_FIRST_BUSY_PAUSE: Final = 0.01
_LONGEST_BUSY_PAUSE: Final = 0.2
_FAILED: Final = LLMStatusCode.LLM_LINK_FAILED
_BUSY: Final = LLMStatusCode.LLM_PROCESSING_LINK
_GREETING: Final = "waiting for the peer's greeting"
_LONGER: Final = "check that the peer is not frozen, or give it a longer timeout"
#: Problem and remedy of a timeout, by the step that timed out.
_UNANSWERED: Final = {
    LOOKING_UP: (
        "the name server did not answer",
        "check the host name and the name server, or give an IP address",
    ),
    CONNECTING: (
        "no answer to the connection request",
        "the host is down or a firewall drops packets: check address, host and firewall",
    ),
    _GREETING: (
        "no answer from what listens there",
        "check that it is an llm-datadist instance and not frozen, or give it a longer timeout",
    ),
}


class _DialAgainError(Exception):
    """Dial again: after the set-up `first`, if there is one, else after a pause in seconds."""

    def __init__(self, first: Setup | None, pause: float = 0.0) -> None:
        super().__init__()
        self.first = first
        self.pause = pause


async def dial(context: LinkContext, lifecycle: LinkLifecycle, request: DialRequest) -> DialOutcome:
    """Link to the instance at an address, or return the link that exists. Never raises."""
    attempt = _Dial(context, lifecycle, request)
    place = printed(request.address)
    if request.expected_cluster_id is not None:
        place = f"cluster {request.expected_cluster_id} at {place}"
    try:
        link = await request.deadline.limit(attempt.run())
    except SetupError as error:
        result, answered = LinkResult(error.status, f"{place}: {error.reason}"), error.answered
    except asyncio.TimeoutError:
        result, answered = attempt.timed_out(place), bool(attempt.busy)
    else:
        return DialOutcome(LinkResult(LLMStatusCode.LLM_SUCCESS, link=link), attempt.is_new)
    is_first = request.relink is None and not request.is_repeated
    level = logging.INFO if is_first else logging.DEBUG
    logger.log(level, "dial failed [%s]: %s", result.status.name, result.reason)
    return DialOutcome(result, answered=answered)


@final
class _Dial:
    """One dial, with as many connections as it needs."""

    def __init__(
        self, context: LinkContext, lifecycle: LinkLifecycle, request: DialRequest
    ) -> None:
        self._context = context
        self._index = context.index
        self._lifecycle = lifecycle
        self._request = request
        self._opened: DialConnection  # the current connection
        self._pauses = Backoff(_FIRST_BUSY_PAUSE, _LONGEST_BUSY_PAUSE)
        self.step = CONNECTING
        self._limit_seconds = min(request.deadline.seconds, request.answer_seconds)
        self.busy = ""  # the set-up or tear-down of the same link that the dial waits for
        self.is_new = False

    async def run(self) -> Link:
        """Return the link; SetupError carries the reason why there is none."""
        attempts = 0
        while attempts < _MAX_ATTEMPTS:  # only the deadline limits waiting for other set-ups
            try:
                return await self._attempt()
            except _DialAgainError as again:
                if again.first is None:
                    attempts += 1
                    await asyncio.sleep(again.pause)
                elif (link := await self._outcome_of(again.first)) is not None:
                    return link
            except SetupError as error:
                if error.status is not _BUSY or not self._request.is_call:
                    raise
                self.busy = error.reason
                await asyncio.sleep(self._pauses.next())
        raise SetupError(_FAILED, "the link keeps changing while it is set up; link again")

    def timed_out(self, place: str) -> LinkResult:
        """Return the result of a dial that has reached its deadline."""
        num_ms = f"{self._limit_seconds * 1000:.0f} ms"
        if self.busy:
            reason = f"{place}: {self.busy} (not over within {num_ms})"
            return LinkResult(_BUSY, reason)
        problem, remedy = _UNANSWERED.get(self.step, (f"no answer while {self.step}", _LONGER))
        reason = f"{place}: {problem}, within {num_ms}; {remedy}"
        return LinkResult(LLMStatusCode.LLM_TIMEOUT, reason)

    async def _outcome_of(self, other: Setup) -> Link | None:
        """Wait for another set-up with the same peer; return its link if this dial may share it.

        It may if both are for the same holder, which the peer then knows, and at one address. One
        that was accepted from that address is left to end: it is not a stranger's. Others are
        withdrawn when they stall, but never by a dial for which no call waits.
        """
        is_same = other.address == self._request.address
        by = "by another call" if other.address is not None else "by the peer"
        self.busy = f"the link to cluster {other.cluster_id} is being set up {by}; retry soon"
        if self._request.relink is None:
            await other.wait_until_stalled()
            if not (is_same and other.accepted):
                other.withdrawn.set()
        await other.ended.wait()
        self.busy = ""
        link = other.link
        if not is_same or other.holder != self._request.holder or link is None or not link.alive:
            return None
        return self._adopt(link)

    async def _attempt(self) -> Link:
        self.step = CONNECTING
        answer_deadline = self._request.deadline.at_most(self._request.answer_seconds)
        self._opened = await answer_deadline.limit(
            open_connection(self._context, self._request, lambda step: setattr(self, "step", step))
        )
        connection = self._opened.connection
        stream = HandshakeStream(connection, Side.DIALER, self._context.secret)
        try:
            return await self._shake_hands(stream, answer_deadline)
        except SetupError as error:
            stream.give_up(error.status, error.reason)
            raise
        except _DialAgainError:
            stream.give_up(
                LLMStatusCode.LLM_PROCESSING_LINK, "another set-up of the link goes first"
            )
            raise
        except asyncio.CancelledError:  # out of time, or finalized
            if stream.link is not None:  # at the last moment: both ends have the link
                return stream.link
            stream.give_up(LLMStatusCode.LLM_PROCESSING_LINK, "the dial was given up")
            raise
        except SecretMismatchError:
            raise SetupError(
                _FAILED,
                "the peer has another secret; configure the same link_secret on both sides",
            ) from None
        except TlsError as error:
            raise tls_failed(error) from error
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
            if stream.link is None:
                connection.close()

    async def _shake_hands(self, stream: HandshakeStream, answer_deadline: Deadline) -> Link:
        self.step = _GREETING
        stream.send(self._hello())
        welcome = await answer_deadline.limit(stream.receive(Welcome))
        self._limit_seconds = self._request.deadline.seconds
        self._check_identity(welcome)
        link_id = next(self._context.link_ids)
        endpoint = await self._context.endpoint(link_id)
        setup = await self._claim(welcome)
        try:
            stream.send(Confirm(endpoint=endpoint))
            agreeing = self._agree(stream, welcome, link_id, setup)
            setup.link = await setup.unless_withdrawn(agreeing)
            return setup.link
        except WithdrawnError:  # the peer may be a stranger that stalls
            raise _DialAgainError(None, _WITHDRAWN_SECONDS) from None
        finally:
            del self._index.dials[setup.incarnation]
            setup.ended.set()

    async def _agree(
        self,
        stream: HandshakeStream,
        welcome: Welcome,
        link_id: int,
        setup: Setup,
    ) -> Link:
        self.step = "waiting for the peer's consent"
        answer = await stream.receive(Accept, Existing, Yield)
        if isinstance(answer, Accept):
            setup.accepted = True
            peer = Peer(
                cluster_id=welcome.cluster_id,
                incarnation=welcome.incarnation,
                address=self._request.address,
                dialed=True,
                is_self=welcome.incarnation == self._context.incarnation,
                page_proof=stream.handshake.page_proof(Side.ACCEPTOR),
                most_lanes=min(self._context.num_lanes, max(answer.num_lanes, answer.most_lanes)),
            )
            self._context.delegate.show_proof(link_id, stream.handshake.page_proof(Side.DIALER))
            return await self._complete(stream, peer, link_id, answer)
        if isinstance(answer, Yield):
            self.step = "waiting for the peer, which dials this instance"
            await stream.connection.wait_closed_by_peer()
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
            first_generation=True if context.first_generation else UNSET,
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
        """Commit this end to the set-up once no other link or set-up is in its way."""
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
                self.busy = f"the link to cluster {cluster_id} is being taken down; retry soon"
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
                self.busy = ""
                setup = Setup(
                    cluster_id,
                    incarnation,
                    self._request.relink,
                    self._request.address,
                    self._request.holder,
                    self._opened.source,
                )
                self._index.dials[incarnation] = setup
                return setup

    def _yield_to_setups(self, incarnation: int) -> None:
        """Raise _DialAgainError while another set-up with this peer runs."""
        own = self._index.dials.get(incarnation)
        if own is not None:
            raise _DialAgainError(own)
        inbound = self._index.inbounds.get(incarnation)
        if inbound is not None and incarnation != self._context.incarnation:
            raise _DialAgainError(inbound)

    def _existing(self, welcome: Welcome) -> Link:
        """Return the link that the peer has found to be alive."""
        link = self._index.links.get(welcome.cluster_id)
        if link is None or link.incarnation != welcome.incarnation:
            raise _DialAgainError(None)
        return self._adopt(link)

    def _adopt(self, link: Link) -> Link:
        """Hold a link that exists already."""
        link.holders |= {self._request.holder}
        link.addresses.add(self._request.address)
        return self._found(link)

    def _found(self, link: Link) -> Link:
        """Keep the address at which a call of link_clusters reached the peer."""
        if self._request.domain is None:
            link.dialed_addresses[self._request.address] = self._request.source_ip
        return link

    async def _complete(
        self, stream: HandshakeStream, peer: Peer, link_id: int, accept: Accept
    ) -> Link:
        stale = self._index.links.get(peer.cluster_id)
        if stale is not None:  # if this is its peer, that one has no link, so this is stale
            if await self._lifecycle.is_alive(stale):
                raise SetupError(
                    LLMStatusCode.LLM_ALREADY_LINK,
                    f"what answers claims to be cluster {peer.cluster_id}, whose link to "
                    f"{printed(stale.address)} is alive; correct the address",
                )
            await self._lifecycle.drop(stale, "the peer no longer has this link", died=False)
        self.step = "opening lanes"
        route, relays = self._opened.route, self._agreed_relays(accept)
        lane_key = stream.handshake.lane_key()
        terms = LaneTerms(peer.most_lanes, accept.session, lane_key, route, relays)
        lanes = await self._open_lanes(route, terms, accept.num_lanes)
        self.step = "waiting for the peer to complete the link"
        connecting = Connecting(self._context, peer, link_id, accept.endpoint, lanes)
        connection, holder = stream.connection, self._request.holder
        resolved = plain_address(route[1])
        try:
            stream.send(Complete())
            await stream.receive(Ready)  # first: it decides what `give_up` sends
            data = await connecting.data()
            link = self._lifecycle.install(
                peer, link_id, data, connection, terms, holder, [resolved]
            )
        except BaseException:
            connecting.undo()
            raise
        stream.link = self._found(link)
        self.is_new = True
        return link

    def _agreed_relays(self, accept: Accept) -> Relays | None:
        """Return the relays if the lanes use TLS; ProtocolError when the peer may not choose so."""
        tls, encrypted = self._context.tls, accept.encrypt_lanes is True
        if encrypted and tls is None:
            raise ProtocolError("encrypted lanes of a link outside TLS")
        if not encrypted and tls is not None and tls.lanes:
            raise ProtocolError("no encrypted lanes, which were asked for")
        return self._context.relays if encrypted else None

    @staticmethod
    async def _open_lanes(route: LaneRoute, terms: LaneTerms, num_lanes: int) -> OpenLanes:
        try:
            return await open_lanes(route, terms, all_places(num_lanes))
        except (OSError, EOFError) as error:
            raise SetupError(
                _FAILED,
                f"a data lane broke while it was opened: {_words(error)}; see the peer's log",
            ) from error


def _words(error: OSError | EOFError) -> str:
    return explained(error) if isinstance(error, OSError) else str(error)
