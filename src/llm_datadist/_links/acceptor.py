"""Set up a link from the accepting end. Loop thread only."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, TypeAlias, final

from msgspec import UNSET

from llm_datadist._control.connection import ControlConnection, PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import descriptor_share, printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.admission import check_domain, check_hello, check_relink
from llm_datadist._links.context import CLUSTERS, Connecting, SetupError
from llm_datadist._links.handshake_stream import HandshakeStream
from llm_datadist._links.lane_setup import LaneSession
from llm_datadist._links.lane_terms import FIRST_LANES, LaneTerms
from llm_datadist._links.link import Link, Peer
from llm_datadist._links.state import Setup, WithdrawnError
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import SecretMismatchError, Side, fresh_nonce
from llm_datadist._protocol.messages import (
    Accept,
    Complete,
    Confirm,
    Existing,
    Hello,
    Ready,
    Reject,
    Welcome,
    Yield,
)

if TYPE_CHECKING:
    from llm_datadist._control.listener import IncomingConnection
    from llm_datadist._control.relay import Relays
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lifecycle import LinkLifecycle

__all__ = ["receive_link"]

logger = logging.getLogger("llm_datadist")

_SETUP_SECONDS: Final = 30.0  # of an authenticated peer; it closes when it gives up earlier
#: Time for the dialer of a domain to answer a ping over the link that this end has. Its dial may
#: have crossed another one, and it may be slow; a good link that is dropped would fail domains.
_DOMAIN_SECONDS: Final = 15.0
_EARLIER_SECONDS: Final = 3.0  # longer than the time after which a set-up counts as stalled
#: Limit of the set-ups at a time: without a secret a stranger could start more, each for
#: _SETUP_SECONDS.
MAX_ARRIVING: Final = 2048
_ROOM_SECONDS: Final = 0.5
_FAILED: Final = LLMStatusCode.LLM_LINK_FAILED
#: A set-up to which this end is committed, or the link that exists already.
_Verdict: TypeAlias = "Setup | Link"


async def receive_link(
    context: LinkContext, lifecycle: LinkLifecycle, incoming: IncomingConnection
) -> None:
    """Serve an incoming control connection until its link is up or is refused.

    Raises:
        ProtocolError, PeerClosedError: The peer's error.
    """
    connection = await ControlConnection.open(incoming.sock, context.silence_ms, incoming.session)
    stream = HandshakeStream(connection, Side.ACCEPTOR, context.secret)
    try:
        await Deadline(_SETUP_SECONDS).limit(_Inbound(context, lifecycle, incoming, stream).run())
    except SetupError as error:
        incoming.log(
            logging.INFO,
            "link from %s refused [%s]: %s",
            printed(incoming.peer),
            error.status.name,
            error.reason,
        )
        stream.give_up(error.status, error.reason)
    except asyncio.TimeoutError:
        raise PeerClosedError(f"it did not complete a link in {_SETUP_SECONDS:g} s") from None
    finally:
        if stream.link is None:
            connection.close()


@final
class _Inbound:
    """One incoming handshake."""

    def __init__(
        self,
        context: LinkContext,
        lifecycle: LinkLifecycle,
        incoming: IncomingConnection,
        stream: HandshakeStream,
    ) -> None:
        self._context = context
        self._index = context.index
        self._lifecycle = lifecycle
        self._incoming = incoming
        self._stream = stream
        self._page_proof = b""

    async def run(self) -> None:
        """Set the link up; SetupError carries the status and reason for the peer."""
        hello = await self._stream.receive(Hello)
        check_hello(self._context, hello, is_encrypted=self._incoming.session is not None)
        self._stream.send(
            Welcome(
                cluster_id=self._context.cluster_id,
                incarnation=self._context.incarnation,
                nonce=fresh_nonce(),
            )
        )
        try:
            confirm = await self._stream.receive(Confirm)
        except SecretMismatchError:
            raise ProtocolError("it has another secret") from None
        await self._wait_for_room(hello)
        self._incoming.set_authenticated()
        self._context.num_arriving += 1
        try:
            await self._arrive(hello, confirm)
        finally:
            self._context.num_arriving -= 1

    async def _wait_for_room(self, hello: Hello) -> None:
        """Wait a moment while too many links are being set up, then raise SetupError.

        Without a secret and TLS a stranger gets this far. Set-ups and the lanes that each needs may
        then use at most half of the descriptors.
        """
        context = self._context
        most = MAX_ARRIVING
        if context.secret is None and context.tls is None:
            num_descriptors = 1 + 2 * min(FIRST_LANES, context.num_lanes, hello.num_lanes)
            most = descriptor_share(2 * num_descriptors, MAX_ARRIVING)
        deadline = asyncio.get_running_loop().time() + _ROOM_SECONDS
        while context.num_arriving >= most and not self._index.withdraw_stalled():
            if asyncio.get_running_loop().time() >= deadline:
                raise SetupError(
                    LLMStatusCode.LLM_PROCESSING_LINK,
                    f"cluster {context.cluster_id} is setting up {most} links; retry soon",
                )
            await asyncio.sleep(_ROOM_SECONDS / 20)

    async def _arrive(self, hello: Hello, confirm: Confirm) -> None:
        """Set the link up, or answer why it is not needed."""
        await check_domain(self._context, hello)
        check_relink(self._context, hello)
        verdict = await self._claim(hello)
        if isinstance(verdict, Setup):
            await self._set_up(verdict, hello, confirm)
        elif verdict is not None:
            self._stream.send(Existing())
            verdict.hold_for_peer(_holder(hello))

    async def _claim(self, hello: Hello) -> _Verdict | None:
        """Commit this end to the link once no other link or set-up is in its way.

        When two instances dial each other, the one with the lower incarnation decides: it makes the
        other wait after its own Confirm was sent, and withdraws its own dial if it accepted the
        other's before. So exactly one of the two dials succeeds.

        Returns:
            The set-up, or the link if it exists already; None when this end's own dial goes first.
        """
        cluster_id, incarnation = hello.cluster_id, hello.incarnation
        own = self._context.incarnation
        if incarnation == own:
            self._check_own_dial()
        earlier_deadline = Deadline(_EARLIER_SECONDS)
        while True:
            own_dial = self._index.dials.get(incarnation)
            if own_dial is not None and own < incarnation:
                self._stream.send(Yield())
                await own_dial.wait_or_withdraw()
                return None
            if own_dial is not None and own_dial.accepted and incarnation != own:
                await own_dial.wait_or_withdraw()  # the peer only verifies its link, which exists
                continue
            earlier = self._index.inbounds.get(incarnation)
            rival = self._index.rival_setup(cluster_id, incarnation)
            leaving = self._index.leaving_from(cluster_id)
            link = self._index.links.get(cluster_id)
            if earlier is not None:
                await self._wait_for(earlier, earlier_deadline)
            elif rival is not None:
                await rival.wait_or_withdraw()
            elif leaving is not None:
                await self._wait_gone(leaving, incarnation)
            elif link is not None:
                is_same = link.incarnation == incarnation
                patience = _DOMAIN_SECONDS if is_same and hello.domain is not None else None
                if await self._lifecycle.is_alive(link, asks_lanes=not is_same, seconds=patience):
                    if is_same:
                        return link
                    raise SetupError(
                        LLMStatusCode.LLM_ALREADY_LINK,
                        f"cluster id {cluster_id} is linked to cluster {self._context.cluster_id} "
                        f"by another live instance at {printed(link.address)}; give the instances "
                        "different ids",
                    )
                await self._lifecycle.drop(link, "it does not answer and was dialed again")
            else:
                setup = Setup(cluster_id, incarnation)
                self._index.inbounds[incarnation] = setup
                return setup

    async def _wait_for(self, earlier: Setup, deadline: Deadline) -> None:
        try:
            await deadline.limit(earlier.wait_or_withdraw())
        except asyncio.TimeoutError:
            raise SetupError(
                LLMStatusCode.LLM_PROCESSING_LINK,
                f"cluster {self._context.cluster_id} is still setting up the same link; retry soon",
            ) from None

    def _check_own_dial(self) -> None:
        """Refuse a dial of this instance that a third party has relayed.

        Its proofs are valid, but the third party would be on the path of the link.
        """
        dial = self._index.dials.get(self._context.incarnation)
        if dial is None:
            raise SetupError(
                _FAILED,
                "it claims to be this instance, which does not dial itself; check the address",
            )
        if dial.source != self._incoming.peer:
            raise SetupError(
                _FAILED,
                "this instance dialed itself through a relay; to link an instance to itself give "
                "the address at which it listens",
            )

    async def _wait_gone(self, leaving: Link, incarnation: int) -> None:
        if leaving.is_unlinked_locally and leaving.incarnation == incarnation:
            raise SetupError(
                LLMStatusCode.LLM_PROCESSING_LINK,
                f"cluster {self._context.cluster_id} is taking the same link down; retry soon",
            )
        await leaving.gone.wait()

    async def _set_up(self, setup: Setup, hello: Hello, confirm: Confirm) -> None:
        context = self._context
        session: LaneSession | None = None
        try:
            link_id = next(context.link_ids)
            endpoint = await context.endpoint(link_id)
            most_lanes = min(context.num_lanes, hello.num_lanes)
            relays = context.relays if self._encrypts_lanes(hello) else None
            session = self._accept(link_id, endpoint, most_lanes, relays)
            await self._wait_completed(setup, session)
            peer = self._peer(hello, most_lanes)
            connecting = Connecting(context, peer, link_id, confirm.endpoint, session.take())
            terms = LaneTerms(most_lanes, session.session, session.key, relays=relays)
            stream = self._stream
            try:
                data = await connecting.data()
                link = self._lifecycle.install(
                    peer,
                    link_id,
                    data,
                    stream.connection,
                    terms,
                    _holder(hello),
                    [] if hello.listen is None else [hello.listen],
                )
            except BaseException:
                connecting.undo()
                raise
            stream.link = link
            stream.send(Ready())
        finally:
            del self._index.inbounds[setup.incarnation]
            setup.ended.set()
            if session is not None:
                if context.sessions.get(session.session) is session:  # no link has taken it over
                    del context.sessions[session.session]
                session.close()

    def _encrypts_lanes(self, hello: Hello) -> bool:
        """Return whether the lanes use TLS: if either end wants that."""
        tls = self._context.tls
        return tls is not None and (tls.lanes or hello.encrypt_lanes is True)

    def _accept(
        self, link_id: int, endpoint: bytes, most_lanes: int, relays: Relays | None
    ) -> LaneSession:
        """Send Accept, and expect the lanes of the session that it names."""
        num_lanes = min(FIRST_LANES, most_lanes)
        session = LaneSession(num_lanes, relays)
        accept = Accept(
            session=session.session,
            num_lanes=num_lanes,
            most_lanes=most_lanes,
            endpoint=endpoint,
            encrypt_lanes=UNSET if relays is None else True,
        )
        self._stream.send(accept)
        handshake = self._stream.handshake
        session.key = handshake.lane_key()
        self._page_proof = handshake.page_proof(Side.DIALER)
        self._context.delegate.show_proof(link_id, handshake.page_proof(Side.ACCEPTOR))
        self._context.sessions[session.session] = session
        return session

    async def _wait_completed(self, setup: Setup, session: LaneSession) -> None:
        """Wait for Complete and the lanes; SetupError when another set-up goes first."""
        try:
            await setup.unless_withdrawn(self._completed(session))
        except WithdrawnError:
            raise SetupError(
                LLMStatusCode.LLM_PROCESSING_LINK,
                f"the dialer did not complete the link to cluster {self._context.cluster_id} "
                "in time and another set-up goes first; retry soon",
            ) from None

    async def _completed(self, session: LaneSession) -> None:
        await self._stream.receive(Complete)
        # The dialer sends nothing before the Ready unless it gives up, for example because it has
        # lost a lane.
        filling = asyncio.ensure_future(session.wait_filled())
        rejecting = asyncio.ensure_future(self._stream.receive(Reject))
        try:
            await asyncio.wait({filling, rejecting}, return_when=asyncio.FIRST_COMPLETED)
            if rejecting.done() or not filling.done():
                await rejecting
        finally:
            for waiting in (filling, rejecting):
                waiting.cancel()
            await asyncio.gather(filling, rejecting, return_exceptions=True)

    def _peer(self, hello: Hello, most_lanes: int) -> Peer:
        address = self._incoming.peer
        if hello.listen is not None:
            address = (address[0], hello.listen[1])
        return Peer(
            cluster_id=hello.cluster_id,
            incarnation=hello.incarnation,
            address=address,
            dialed=False,
            is_self=hello.incarnation == self._context.incarnation,
            page_proof=self._page_proof,
            most_lanes=most_lanes,
        )


def _holder(hello: Hello) -> str:
    return CLUSTERS if hello.domain is None else hello.domain.holder
