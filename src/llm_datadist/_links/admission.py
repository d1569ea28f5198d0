"""Checks of a dialer's hello, before the accepting end commits itself to the link."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from llm_datadist._errors import LLMStatusCode
from llm_datadist._links.context import SetupError
from llm_datadist._links.delegate import Refusal
from llm_datadist._protocol.messages import PROTOCOL_VERSION

if TYPE_CHECKING:
    from llm_datadist._links.context import LinkContext
    from llm_datadist._protocol.messages import Hello

__all__ = ["check_domain", "check_hello", "check_relink"]

logger = logging.getLogger("llm_datadist")

_FAILED: Final = LLMStatusCode.LLM_LINK_FAILED


def check_hello(context: LinkContext, hello: Hello, *, is_encrypted: bool) -> None:
    """Check version, generation, TLS, secret and cluster id, before the dialer is authenticated.

    Raises:
        SetupError: One of them does not fit.
    """
    problem = ""
    if hello.version != PROTOCOL_VERSION:
        problem = (
            f"the acceptor has protocol version {PROTOCOL_VERSION} and the dialer "
            f"{hello.version}; install the same llm-datadist on both sides"
        )
    elif (hello.first_generation is True) is not context.first_generation:
        first, other = ("the dialer", "the acceptor")[:: -1 if context.first_generation else 1]
        problem = (
            f"{first} is in first-generation mode (kv_cache_manager) and {other} has the cache "
            "manager; set llm.EnableCacheManager alike on both sides"
        )
    elif not is_encrypted and context.tls is not None:
        problem = (
            "the acceptor takes links inside TLS only and the dialer has no TLS; set llm.TlsCert, "
            "llm.TlsKey and llm.TlsCa on both sides"
        )
    elif hello.has_secret is not (context.secret is not None):
        has, has_not = ("the dialer", "the acceptor")[:: 1 if hello.has_secret else -1]
        problem = (
            f"{has} has a secret and {has_not} has none; configure the same link_secret on both "
            "sides"
        )
    elif hello.expected_cluster_id not in (None, context.cluster_id):
        problem = (
            f"expected cluster {hello.expected_cluster_id}, but the instance there is cluster "
            f"{context.cluster_id}; correct remote_cluster_id or the address"
        )
    if problem:
        raise SetupError(_FAILED, problem)


async def check_domain(context: LinkContext, hello: Hello) -> None:
    """Ask the layer above whether it accepts the domain of an authenticated dialer, if any.

    Raises:
        SetupError: It refuses.
    """
    if hello.domain is None:
        return
    hook = context.hooks.on_domain_hello
    answer: str | Refusal | None = "this instance has no domains"
    if hook is not None:
        try:
            answer = await context.workers.run(hook, hello.domain, hello.cluster_id)
        except Exception as error:  # a defect of the hook: this link is refused, others go on
            logger.exception("the domain hello of cluster %d", hello.cluster_id)
            raise SetupError(_FAILED, f"the domain is refused: {error}") from error
    if isinstance(answer, str):
        answer = Refusal(_FAILED, answer)
    if answer is not None:
        raise SetupError(answer.status, answer.reason)


def check_relink(context: LinkContext, hello: Hello) -> None:
    """Check that the link that the dialer re-establishes was not unlinked at this end.

    Raises:
        SetupError: It was, while the two could not reach each other.
    """
    if hello.relinks is not None and hello.relinks in context.unlinked_sessions:
        raise SetupError(
            LLMStatusCode.LLM_NOT_YET_LINK,
            f"cluster {context.cluster_id} has unlinked that link meanwhile; link_clusters makes a "
            "new one",
        )
