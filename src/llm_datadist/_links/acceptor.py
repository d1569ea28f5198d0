"""Setting up a link from the accepting end. Loop thread only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, final

from msgspec import UNSET

from llm_datadist._control.connection import ControlConnection, PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.sockets import descriptor_share, printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import CLUSTERS, SetupError
from llm_datadist._links.delegate import Refusal
from llm_datadist._links.lane_setup import LaneSession
from llm_datadist._links.lane_terms import LaneTerms
from llm_datadist._links.link import Link, Peer
from llm_datadist._links.state import Setup, WithdrawnError
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Handshake, SecretMismatchError, Side, fresh_nonce
from llm_datadist._protocol.messages import (
    PROTOCOL_VERSION,
    Accept,
    Complete,
    Confirm,
    DomainHello,
    Existing,
    Hello,
    Message,
    Ready,
    Reject,
    Welcome,
    Yield,
)

if TYPE_CHECKING:
    from llm_datadist._control.listener import Visit
    from llm_datadist._control.relay import Relays
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lifecycle import LinkLifecycle

__all__ = ["receive_link"]

logger = logging.getLogger("llm_datadist")

_Kind = TypeVar("_Kind", bound=Message)
_SETUP_SECONDS: Final = 30.0  # for a proven peer; it closes the connection when it gives up earlier
_EARLIER_SECONDS: Final = 3.0  # longer than a stalled set-up is left alone
#: Without a secret anybody gets that far, and could hold as many connections for _SETUP_SECONDS.
MAX_ARRIVING: Final = 2048
_ROOM_SECONDS: Final = 0.5
_FAILED: Final = LLMStatusCode.LLM_LINK_FAILED
#: A set-up that we are bound to, our own dial that goes first, or the link that there is already.
_Verdict: TypeAlias = "Setup | Yield | Link"


async def receive_link(context: LinkContext, lifecycle: LinkLifecycle, visit: Visit) -> None:
    """Serve an incoming control connection until its link is up or it is refused.

    Raises:
        ProtocolError, PeerClosedError: What the peer did wrong.
    """
    connection = await ControlConnection.open(visit.sock, context.silence_ms, visit.session)
    inbound = _Inbound(context, lifecycle, visit, connection)
    try:
        await Deadline(_SETUP_SECONDS).limit(inbound.run())
    except SetupError as error:
        visit.complain(
            logging.INFO,
            "link from %s refused [%s]: %s",
            printed(visit.peer),
            error.status.name,
            error.reason,
        )
        inbound.reject(error)
    except asyncio.TimeoutError:
        raise PeerClosedError(f"it did not complete a link in {_SETUP_SECONDS:g} s") from None
    finally:
        if not inbound.kept:
            connection.close()


@final
class _Inbound:
    """One incoming handshake."""

    def __init__(
        self,
        context: LinkContext,
        lifecycle: LinkLifecycle,
        visit: Visit,
        connection: ControlConnection,
    ) -> None:
        self._context = context
        self._index = context.index
        self._lifecycle = lifecycle
        self._visit = visit
        self._connection = connection
        self._shake = Handshake(Side.ACCEPTOR, context.secret)
        self._page_proof = b""
        self.kept = False

    async def run(self) -> None:
        """Go through with it; SetupError says what to tell the peer."""
        hello = await self._hear(Hello)
        self._check_hello(hello)
        self._say(
            self._shake.prove(
                Welcome(
                    cluster_id=self._context.cluster_id,
                    incarnation=self._context.incarnation,
                    nonce=fresh_nonce(),
                )
            )
        )
        try:
            confirm = await self._hear(Confirm)
        except SecretMismatchError:
            raise ProtocolError("it has another secret") from None
        await self._wait_for_room(hello)
        self._visit.proven()
        self._context.num_arriving += 1
        try:
            await self._arrive(hello, confirm)
        finally:
            self._context.num_arriving -= 1

    async def _wait_for_room(self, hello: Hello) -> None:
        """Wait a moment while too many links are being set up, then refuse.

        Without a secret and without TLS whoever connects gets that far; then at most half of the
        descriptors are for set-ups, with the lanes that each of them is to have.
        """
        context = self._context
        most = MAX_ARRIVING
        if context.secret is None and context.tls is None:
            each = 1 + 2 * min(context.num_lanes, hello.num_lanes)
            most = descriptor_share(2 * each, MAX_ARRIVING)
        deadline = asyncio.get_running_loop().time() + _ROOM_SECONDS
        while context.num_arriving >= most and not self._index.withdraw_stalled():
            if asyncio.get_running_loop().time() >= deadline:
                raise SetupError(
                    LLMStatusCode.LLM_PROCESSING_LINK,
                    f"cluster {context.cluster_id} sets up {most} links now; retry soon",
                )
            await asyncio.sleep(_ROOM_SECONDS / 20)

    async def _arrive(self, hello: Hello, confirm: Confirm) -> None:
        """Set the link up, or say why there need not be one."""
        await self._check_domain(hello)
        self._check_relink(hello)
        verdict = await self._claim(hello)
        if isinstance(verdict, Setup):
            await self._set_up(verdict, hello, confirm)
        elif isinstance(verdict, Link):
            self._say(Existing())
            await self._hold(verdict, hello)

    def reject(self, error: SetupError) -> None:
        """Tell the peer why not, as far as it still listens."""
        with contextlib.suppress(ProtocolError, PeerClosedError):
            self._say(Reject(status=int(error.status), reason=error.reason[:4000]))

    def _say(self, message: Message) -> None:
        self._shake.sent(message)
        self._connection.send(message)

    async def _hear(self, kind: type[_Kind]) -> _Kind:
        message = await self._connection.receive()
        self._shake.received(message)
        if isinstance(message, Reject):
            raise PeerClosedError(f"it gave up: {message.reason}")
        if not isinstance(message, kind):
            raise ProtocolError(f"unexpected {type(message).__name__}")
        return message

    def _check_hello(self, hello: Hello) -> None:
        context = self._context
        if hello.version != PROTOCOL_VERSION:
            raise SetupError(
                _FAILED,
                f"protocol version {PROTOCOL_VERSION} here, {hello.version} at the dialer; install "
                "the same llm-datadist on both sides",
            )
        if self._visit.session is None and context.tls is not None:
            raise SetupError(
                _FAILED,
                "the acceptor takes links inside TLS only and the dialer has no TLS; set "
                "llm.TlsCert, llm.TlsKey and llm.TlsCa on both sides",
            )
        if hello.has_secret is not (context.secret is not None):
            has, has_not = ("the dialer", "the acceptor")[:: 1 if hello.has_secret else -1]
            raise SetupError(
                _FAILED,
                f"{has} has a secret and {has_not} has none; configure the same link_secret on "
                "both sides",
            )
        if hello.expected_cluster_id not in (None, context.cluster_id):
            raise SetupError(
                _FAILED,
                f"expected cluster {hello.expected_cluster_id}, but the instance there is cluster "
                f"{context.cluster_id}; correct remote_cluster_id or the address",
            )

    async def _check_domain(self, hello: Hello) -> None:
        if hello.domain is None:
            return
        hook = self._context.hooks.on_domain_hello
        answer: str | Refusal | None = "this instance has no domains"
        if hook is not None:
            try:
                answer = await self._context.workers.run(hook, hello.domain, hello.cluster_id)
            except Exception as error:
                logger.exception("the domain hello of cluster %d", hello.cluster_id)
                raise SetupError(_FAILED, f"the domain is refused: {error}") from error
        if isinstance(answer, str):
            answer = Refusal(_FAILED, answer)
        if answer is not None:
            raise SetupError(answer.status, answer.reason)

    def _check_relink(self, hello: Hello) -> None:
        """Refuse to make a link again that was unlinked here while the peer could not be told."""
        if hello.relinks is not None and hello.relinks in self._context.unlinked_sessions:
            raise SetupError(
                LLMStatusCode.LLM_NOT_YET_LINK,
                f"cluster {self._context.cluster_id} has unlinked that link meanwhile; "
                "link_clusters makes a new one",
            )

    async def _claim(self, hello: Hello) -> _Verdict | None:
        """Decide about the link once nothing else stands in its way, and bind this end to it.

        Of two instances that dial each other at the same time the one with the lower incarnation
        decides: it lets the other wait once its own Confirm is out, and withdraws its own dial when
        it has accepted the other's before. So exactly one of the two dials goes through.
        """
        cluster_id, incarnation = hello.cluster_id, hello.incarnation
        own = self._context.incarnation
        if incarnation == own:
            self._check_own_dial()
        earlier_deadline = Deadline(_EARLIER_SECONDS)
        while True:
            own_dial = self._index.dials.get(incarnation)
            if own_dial is not None and own < incarnation:
                self._say(Yield())
                await own_dial.wait_or_withdraw()
                return None
            if own_dial is not None and own_dial.accepted and incarnation != own:
                await own_dial.wait_or_withdraw()  # the other end has it already, and only verifies
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
                if await self._lifecycle.is_alive(link, asks_lanes=link.incarnation != incarnation):
                    if link.incarnation == incarnation:
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
        """Refuse a dial of this very instance that somebody else has passed on.

        The proofs are right then, and whoever is between would be on the path of the link.
        """
        dial = self._index.dials.get(self._context.incarnation)
        if dial is None:
            raise SetupError(_FAILED, "it takes itself for this instance, which is not dialing")
        if dial.source != self._visit.peer:
            raise SetupError(
                _FAILED,
                "this instance was dialed by itself, but somebody in between passes the connection "
                "on; to link an instance to itself give the address at which it listens",
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
            num_lanes = min(context.num_lanes, hello.num_lanes)
            relays = context.relays if self._encrypts_lanes(hello) else None
            session = self._accept(link_id, endpoint, num_lanes, relays)
            await self._opened(setup, session)
            peer = self._peer(hello)
            connecting = context.begin_connect(peer, link_id, confirm.endpoint, session.take())
            terms = LaneTerms(num_lanes, session.session, session.key, relays=relays)
            connection, holder = self._connection, _holder(hello)
            try:
                data = await connecting.data()
                link = self._lifecycle.install(
                    peer, link_id, data, connection, terms, holder, _listening_at(hello)
                )
            except BaseException:
                connecting.undo()
                raise
            self.kept = True
            self._say(Ready())
        finally:
            del self._index.inbounds[setup.incarnation]
            setup.ended.set()
            if session is not None:
                if context.sessions.get(session.session) is session:  # there is no link
                    del context.sessions[session.session]
                session.close()
        await self._tell_domain(link, hello.domain)

    def _encrypts_lanes(self, hello: Hello) -> bool:
        """Return whether either end wants the lanes inside TLS; both have it then."""
        tls = self._context.tls
        return tls is not None and (tls.lanes or hello.encrypt_lanes is True)

    def _accept(
        self, link_id: int, endpoint: bytes, num_lanes: int, relays: Relays | None
    ) -> LaneSession:
        """Say Accept, and begin to wait for the lanes that it promises."""
        session = LaneSession(num_lanes, relays)
        accept = Accept(
            session=session.session,
            num_lanes=num_lanes,
            endpoint=endpoint,
            encrypt_lanes=UNSET if relays is None else True,
        )
        self._say(self._shake.prove(accept))
        self._connection.authenticate(self._shake.control_keys())
        session.key = self._shake.lane_key()
        self._page_proof = self._shake.page_proof(Side.DIALER)
        self._context.delegate.show_proof(link_id, self._shake.page_proof(Side.ACCEPTOR))
        self._context.sessions[session.session] = session
        return session

    async def _opened(self, setup: Setup, session: LaneSession) -> None:
        """Wait until the dialer has done its part; SetupError when another set-up goes first."""
        try:
            await setup.unless_withdrawn(self._completed(session))
        except WithdrawnError:
            raise SetupError(
                LLMStatusCode.LLM_PROCESSING_LINK,
                f"the dialer did not complete the link to cluster {self._context.cluster_id} "
                "in time and another set-up goes first; retry soon",
            ) from None

    async def _completed(self, session: LaneSession) -> None:
        await self._hear(Complete)
        await self._filled(session)

    async def _filled(self, session: LaneSession) -> None:
        """Wait for the lanes, for as long as the dialer waits, too: it may have lost one of them.

        It says nothing until the Ready, unless it gives up.
        """
        filling = asyncio.ensure_future(session.wait_filled())
        hearing = asyncio.ensure_future(self._hear(Reject))
        try:
            await asyncio.wait({filling, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if hearing.done() or not filling.done():
                await hearing
        finally:
            for waiting in (filling, hearing):
                waiting.cancel()
            await asyncio.gather(filling, hearing, return_exceptions=True)

    def _peer(self, hello: Hello) -> Peer:
        address = self._visit.peer
        if hello.listen is not None:
            address = (address[0], hello.listen[1])
        return Peer(
            cluster_id=hello.cluster_id,
            incarnation=hello.incarnation,
            address=address,
            dialed=False,
            is_self=hello.incarnation == self._context.incarnation,
            page_proof=self._page_proof,
        )

    async def _hold(self, link: Link, hello: Hello) -> None:
        link.holders |= {_holder(hello)}
        await self._tell_domain(link, hello.domain)

    async def _tell_domain(self, link: Link, domain: DomainHello | None) -> None:
        hook = self._context.hooks.on_domain_linked
        if domain is not None and hook is not None:
            await self._context.workers.run(hook, domain, link)


def _holder(hello: Hello) -> str:
    return CLUSTERS if hello.domain is None else hello.domain.holder


def _listening_at(hello: Hello) -> list[tuple[str, int]]:
    return [] if hello.listen is None else [hello.listen]
