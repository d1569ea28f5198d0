"""What the accepting end checks of a hello."""

import asyncio

import pytest
from msgspec import UNSET

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.admission import check_domain, check_hello, check_relink
from llm_datadist._links.context import SetupError
from llm_datadist._links.delegate import Refusal
from llm_datadist._protocol.handshake import fresh_nonce
from llm_datadist._protocol.messages import PROTOCOL_VERSION, DomainHello, Hello

S = LLMStatusCode
DOMAIN = DomainHello(name="d", ranks={1: 0, 2: 1}, rank=1, token=7, acceptor=1)


def hello(**named):
    fields = {"version": PROTOCOL_VERSION, "cluster_id": 2, "incarnation": 5}
    return Hello(**fields | {"nonce": fresh_nonce()} | named)


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"version": 1}, "install the same llm-datadist"),
        ({"has_secret": True}, "the dialer has a secret and the acceptor has none"),
        ({"expected_cluster_id": 9}, "expected cluster 9, .* is cluster 1"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_with_a_remedy(context, named, text):
    check_hello(context, hello(expected_cluster_id=1), is_encrypted=False)
    with pytest.raises(SetupError, match=text) as caught:
        check_hello(context, hello(**named), is_encrypted=False)
    assert caught.value.status is S.LLM_LINK_FAILED


@pytest.mark.parametrize("first", [True, False])
def test_the_other_generation_is_refused_with_a_sentence(context, first):
    """api.md checklist 62."""
    context.first_generation = first
    same, other = (True, False) if first else (UNSET, True)
    check_hello(context, hello(first_generation=same), is_encrypted=False)
    who = "the acceptor is in .* and the dialer has" if first else "the dialer is in .* and the acc"
    with pytest.raises(SetupError, match=f"{who}.*EnableCacheManager") as caught:
        check_hello(context, hello(first_generation=other), is_encrypted=False)
    assert caught.value.status is S.LLM_LINK_FAILED


def test_with_a_secret_a_dialer_without_one_is_refused(context):
    context.secret = b"a secret"
    check_hello(context, hello(has_secret=True), is_encrypted=False)
    with pytest.raises(SetupError, match="the acceptor has a secret and the dialer has none"):
        check_hello(context, hello(), is_encrypted=False)


def test_with_tls_configured_a_dialer_without_is_refused(context):
    context.tls = object()
    check_hello(context, hello(), is_encrypted=True)
    with pytest.raises(SetupError, match=r"llm\.TlsCert"):
        check_hello(context, hello(), is_encrypted=False)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, None),
        ("no", S.LLM_LINK_FAILED),
        (Refusal(S.LLM_NOT_YET_LINK, "later"), S.LLM_NOT_YET_LINK),
    ],
)
def test_the_hook_decides_about_a_domain(context, answer, status):
    context.hooks.on_domain_hello = lambda domain, cluster_id: answer
    if status is None:
        asyncio.run(check_domain(context, hello(domain=DOMAIN)))
        return
    with pytest.raises(SetupError) as caught:
        asyncio.run(check_domain(context, hello(domain=DOMAIN)))
    assert caught.value.status is status


def test_without_the_hook_every_domain_is_refused(context):
    asyncio.run(check_domain(context, hello()))
    with pytest.raises(SetupError, match="has no domains"):
        asyncio.run(check_domain(context, hello(domain=DOMAIN)))


@pytest.mark.expects_log("the domain hello of cluster 2")
def test_a_hook_that_raises_refuses(context):
    context.hooks.on_domain_hello = lambda domain, cluster_id: 1 / 0
    with pytest.raises(SetupError, match="division by zero"):
        asyncio.run(check_domain(context, hello(domain=DOMAIN)))


def test_a_link_that_this_end_unlinked_is_not_re_established(context):
    check_relink(context, hello(relinks=bytes(16)))
    context.unlinked_sessions.append(bytes(16))
    with pytest.raises(SetupError, match="has unlinked that link") as caught:
        check_relink(context, hello(relinks=bytes(16)))
    assert caught.value.status is S.LLM_NOT_YET_LINK
