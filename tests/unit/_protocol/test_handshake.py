"""The handshake as a table, and what its proofs are worth."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from llm_datadist._protocol import messages
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import (
    TRANSITIONS,
    Handshake,
    Phase,
    SecretMismatchError,
    Side,
    fresh_nonce,
)
from llm_datadist._protocol.messages import Accept, Complete, Confirm, Hello, Ready, Welcome

SECRET = b"correct horse battery staple"


def hello(**fields):
    given = {"version": 1, "cluster_id": 1, "incarnation": 11, "nonce": fresh_nonce()}
    return Hello(**given | fields)


def welcome():
    return Welcome(cluster_id=2, incarnation=22, nonce=fresh_nonce())


def accept():
    return Accept(session=bytes(16), num_lanes=2, endpoint=b"there")


def pair(dialer_secret=SECRET, acceptor_secret=SECRET):
    return Handshake(Side.DIALER, dialer_secret), Handshake(Side.ACCEPTOR, acceptor_secret)


def pass_on(sender, receiver, message):
    if isinstance(message, (Welcome, Confirm, Accept)):
        message = sender.prove(message)
    sender.sent(message)
    receiver.received(message)
    return message


def up_to_accept(dialer, acceptor):
    return [
        pass_on(dialer, acceptor, hello()),
        pass_on(acceptor, dialer, welcome()),
        pass_on(dialer, acceptor, Confirm(endpoint=b"here")),
        pass_on(acceptor, dialer, accept()),
    ]


@pytest.mark.parametrize("secret", [None, SECRET])
def test_both_ends_reach_the_link_and_the_same_lane_key(secret):
    dialer, acceptor = pair(secret, secret)
    up_to_accept(dialer, acceptor)
    assert dialer.lane_key() == acceptor.lane_key()
    pass_on(dialer, acceptor, Complete())
    pass_on(acceptor, dialer, Ready())
    assert dialer.phase is acceptor.phase is Phase.LINKED
    pass_on(acceptor, dialer, messages.Ping(id=1))
    pass_on(dialer, acceptor, messages.Pong(id=1))


def test_no_two_links_have_the_same_keys():
    keys = set()
    for secret in (None, SECRET) * 4:
        dialer, acceptor = pair(secret, secret)
        up_to_accept(dialer, acceptor)
        assert dialer.control_keys() == acceptor.control_keys()[::-1]
        keys |= {dialer.lane_key(), *dialer.control_keys()}
    assert len(keys) == 24


@pytest.mark.parametrize("message", [welcome(), Confirm(endpoint=b"here"), accept()])
def test_a_proof_covers_its_direction(message):
    """Otherwise an end that has no secret could send the other end's proof back to it."""
    dialer, acceptor = pair()
    assert dialer.prove(message).mac != acceptor.prove(message).mac


@pytest.mark.parametrize("secret", [None, SECRET])
def test_each_end_shows_another_proof_on_its_page(secret):
    dialer, acceptor = pair(secret, secret)
    with pytest.raises(ProtocolError, match="no proof of a page"):
        dialer.page_proof(Side.DIALER)
    up_to_accept(dialer, acceptor)
    proofs = [dialer.page_proof(side) for side in Side]
    assert proofs == [acceptor.page_proof(side) for side in Side]
    assert len(set(proofs)) == 2
    assert {len(proof) for proof in proofs} == {16}


@pytest.mark.parametrize("secret", [None, SECRET])
def test_each_direction_has_another_key(secret):
    dialer, acceptor = pair(secret, secret)
    up_to_accept(dialer, acceptor)
    assert dialer.control_keys().send != dialer.control_keys().receive


def test_there_are_no_keys_before_accept():
    dialer, _ = pair()
    with pytest.raises(ProtocolError, match="no lane key"):
        dialer.lane_key()
    with pytest.raises(ProtocolError, match="no keys of control messages"):
        dialer.control_keys()


@pytest.mark.parametrize("secrets", [(SECRET, b"other"), (SECRET, None), (None, SECRET)])
def test_the_dialer_finds_out_a_wrong_secret_first(secrets):
    dialer, acceptor = pair(*secrets)
    pass_on(dialer, acceptor, hello())
    with pytest.raises(SecretMismatchError):
        pass_on(acceptor, dialer, welcome())


def test_the_acceptor_finds_out_a_dialer_without_the_secret():
    dialer, acceptor = pair()
    pass_on(dialer, acceptor, hello())
    pass_on(acceptor, dialer, welcome())
    for proof in (b"", bytes(32)):
        with pytest.raises(SecretMismatchError):
            acceptor.received(Confirm(endpoint=b"", mac=proof))
        acceptor.phase = Phase.WELCOMED


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (0, {"cluster_id": 9}),
        (0, {"incarnation": 9}),
        (0, {"nonce": bytes(32)}),
        (0, {"domain": messages.DomainHello(name="d", ranks={}, rank=0)}),
        (1, {"cluster_id": 9}),
        (1, {"incarnation": 9}),
        (1, {"nonce": bytes(32)}),
        (2, {"endpoint": b"elsewhere"}),
        (3, {"endpoint": b"elsewhere"}),
        (3, {"session": b"x" * 16}),
        (3, {"num_lanes": 1}),
    ],
)
def test_what_was_said_cannot_be_changed_on_the_way(message, changed):
    ends = pair()

    def deliver(number, said):
        sender, receiver = ends if number % 2 == 0 else ends[::-1]
        if number > 0:
            said = sender.prove(said)
        sender.sent(said)
        receiver.received(replace(said, **changed) if number == message else said)

    with pytest.raises(SecretMismatchError):
        for number, said in enumerate([hello(), welcome(), Confirm(endpoint=b"here"), accept()]):
            deliver(number, said)


def test_a_recorded_dialer_is_worth_nothing():
    recorded = up_to_accept(*pair())
    _, acceptor = pair()
    acceptor.received(recorded[0])
    acceptor.sent(acceptor.prove(welcome()))
    with pytest.raises(SecretMismatchError):
        acceptor.received(recorded[2])


def test_a_proof_cannot_be_sent_back_to_its_maker():
    dialer, acceptor = pair()
    said = hello()
    dialer.sent(said)
    acceptor.received(said)
    proven = acceptor.prove(welcome())
    acceptor.sent(proven)
    mirror = Handshake(Side.ACCEPTOR, SECRET)
    mirror.received(said)
    mirror.sent(proven)
    with pytest.raises(SecretMismatchError):
        mirror.received(Confirm(endpoint=b"", mac=proven.mac))


SAMPLES = {
    type(message): message
    for message in [
        hello(),
        welcome(),
        Confirm(endpoint=b""),
        accept(),
        messages.Existing(),
        messages.Yield(),
        messages.Reject(status=1, reason=""),
        Complete(),
        Ready(),
        messages.Ping(id=1),
        messages.Pong(id=1),
        messages.Request(id=1, body=b""),
        messages.Reply(id=1),
        messages.Notify(body=b""),
        messages.Join(id=1, domain=messages.DomainHello(name="x", ranks={}, rank=0)),
        messages.Joined(id=1, status=0),
        messages.Leave(name="x", token=1, complete=True),
        messages.Unlink(),
        messages.Unlinked(),
    ]
}


@pytest.mark.parametrize(("phase", "kind"), list(itertools.product(Phase, SAMPLES)))
def test_the_table_says_what_may_follow(phase, kind):
    senders, after = TRANSITIONS.get((phase, kind), (frozenset(), None))
    for side in Side:
        shake = Handshake(side, None)
        for act, sender in ((shake.sent, side), (shake.received, side.other)):
            shake.phase = phase
            if sender in senders:
                act(SAMPLES[kind])
                assert shake.phase is after
            else:
                with pytest.raises(ProtocolError, match=kind.__name__):
                    act(SAMPLES[kind])


def test_every_phase_but_the_last_leads_on_and_is_reached():
    led_to = {after for _, after in TRANSITIONS.values()}
    assert led_to | {Phase.NEW} == set(Phase)
    assert {phase for phase, _ in TRANSITIONS} == set(Phase) - {Phase.OVER}
