"""Instances that commands make, with the secret and TLS of the command line or the environment."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from llm_datadist import LLMConfig, LLMDataDist, LLMRole

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "SECRET",
    "SECRET_FILE",
    "TLS_CA",
    "TLS_CERT",
    "TLS_KEY",
    "CaOption",
    "CertOption",
    "FirstGenerationOption",
    "KeyOption",
    "Linked",
    "SecretFileOption",
    "TimeoutOption",
    "credentials_in_environment",
    "linked",
    "new_instance",
    "sigterm_interrupts",
]

SECRET = "LLM_DATADIST_SECRET"
SECRET_FILE = "LLM_DATADIST_SECRET_FILE"
TLS_CERT = "LLM_DATADIST_TLS_CERT"
TLS_KEY = "LLM_DATADIST_TLS_KEY"
TLS_CA = "LLM_DATADIST_TLS_CA"

SecretFileOption = Annotated[
    str | None,
    typer.Option("--secret-file", metavar="FILE", help=f"As environment variable {SECRET_FILE}."),
]
CertOption = Annotated[
    str | None, typer.Option("--tls-cert", metavar="FILE", help=f"As {TLS_CERT}.")
]
KeyOption = Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help=f"As {TLS_KEY}.")]
CaOption = Annotated[str | None, typer.Option("--tls-ca", metavar="FILE", help=f"As {TLS_CA}.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.001, max=3600.0, help="Seconds to wait for the peer.")
]
FirstGenerationOption = Annotated[
    bool,
    typer.Option(
        "--first-generation", help="The peer is in first-generation mode (kv_cache_manager)."
    ),
]

_SMALL_POOL = "1048576"


@contextmanager
def credentials_in_environment(
    secret_file: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_ca: str | None = None,
) -> Iterator[None]:
    """Name the given files in the environment during the block: instances and children read it."""
    names = (SECRET, SECRET_FILE, TLS_CERT, TLS_KEY, TLS_CA)
    before = {name: os.environ.get(name) for name in names}
    secret = "" if secret_file else None  # it would count before the file
    given = zip(names, (secret, secret_file, tls_cert, tls_key, tls_ca), strict=True)
    try:
        os.environ.update({name: value for name, value in given if value is not None})
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt during the block, as Ctrl-C does, in the main thread.

    Commands then end their instances and processes in order. It is the only signal of the two for
    a program that was started in the background of a shell, where SIGINT is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def new_instance(
    *, timeout_s: float = 5.0, first_generation: bool = False, listen: str | None = None
) -> LLMDataDist:
    """Return an initialized instance with an id of its own.

    Args:
        timeout_s: Of each answer of a peer.
        first_generation: Whether it has kv_cache_manager; it then only dials.
        listen: Address to accept links at.

    Raises:
        LLMException: As `LLMDataDist.init`.
    """
    config = LLMConfig()
    config.sync_kv_timeout = max(1, round(timeout_s * 1000))
    config.auto_relink = False
    if first_generation:
        config.ge_options["ge.flowGraphMemMaxSize"] = _SMALL_POOL
    else:
        config.enable_cache_manager = True
    if listen is not None:
        config.listen_ip_info = listen
    instance = LLMDataDist(LLMRole.DECODER, secrets.randbits(62))
    instance.init(config.generate_options())
    return instance


class Linked(NamedTuple):
    """A link of a command.

    Attributes:
        instance: The local instance.
        cluster_id: The peer's id.
        link_ms: How long it took to link.
    """

    instance: LLMDataDist
    cluster_id: int
    link_ms: float


@contextmanager
def linked(address: str, *, timeout_s: float, first_generation: bool) -> Iterator[Linked]:
    """Link a new instance to a peer. The link and the instance end with the block.

    Raises:
        LLMException: As `LLMDataDist.init` and `link_peer`.
        ValueError: The port of the address is outside its width.
    """
    with new_instance(timeout_s=timeout_s, first_generation=first_generation) as instance:
        started = time.monotonic()
        cluster_id = instance.link_peer(address, timeout=max(1, round(timeout_s * 1000)))
        yield Linked(instance, cluster_id, (time.monotonic() - started) * 1000)
