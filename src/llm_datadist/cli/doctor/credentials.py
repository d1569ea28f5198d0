"""The secret and the files of TLS that the environment names, as instances read them."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist import LLMException
from llm_datadist.cli.doctor.certificate import certificates
from llm_datadist.cli.doctor.finding import ok, problem, split_remedy, warning
from llm_datadist.cli.instances import (
    SECRET,
    SECRET_FILE,
    TLS_CA,
    TLS_CERT,
    TLS_KEY,
    new_instance,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["credentials"]

_SUBJECT = "secret and TLS"
_SHORTEST_SECRET = 16
_CREATE = "(umask 077; python3 -c 'import secrets; print(secrets.token_hex(32))' > FILE)"


def credentials() -> Iterator[Finding]:
    """Check the secret and TLS of the environment, by an instance that is made with them."""
    with _logged() as lines:
        try:
            new_instance().finalize()
        except LLMException as error:
            seen, remedy = split_remedy(str(error), "see the text")
            yield problem(_SUBJECT, seen, remedy)
            return
    for line in lines:
        seen, remedy = split_remedy(line, "see docs/security.md")
        yield warning(_SUBJECT, seen, remedy)
    tls = [os.environ.get(name, "") for name in (TLS_CERT, TLS_KEY, TLS_CA)]
    secret, source = _secret()
    if not (secret or tls[0] or os.environ.get(SECRET_FILE)):
        yield warning(
            _SUBJECT,
            "neither is set: every process that can connect to an instance may link and use its "
            "caches",
            f"give all instances one secret: {SECRET_FILE}=FILE, with a file made by {_CREATE}",
        )
    if secret:
        yield from _judged(secret, source)
    if tls[0]:
        yield from certificates(*tls)


def _secret() -> tuple[bytes, str]:
    """Return the secret, and the variable that has or names it."""
    if given := os.environ.get(SECRET, ""):
        return os.fsencode(given), SECRET
    path = Path(os.environ.get(SECRET_FILE, ""))
    is_there = path.is_file()  # not so a pipe, which can be read once only
    return path.read_bytes().rstrip(b"\r\n") if is_there else b"", SECRET_FILE


def _judged(secret: bytes, source: str) -> Iterator[Finding]:
    if source == SECRET and os.environ.get(SECRET_FILE):
        yield warning(
            "secret",
            f"{SECRET} and {SECRET_FILE} are both set, and the former counts",
            f"unset one of them, rather {SECRET}",
        )
    if len(secret) < _SHORTEST_SECRET:
        yield warning(
            "secret",
            f"{source}: fewer than {_SHORTEST_SECRET} bytes, which can be guessed by trying",
            f"take a random one: {_CREATE}",
        )
    else:
        yield ok("secret", f"{source}: at least {_SHORTEST_SECRET} bytes")


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the warnings of the library during the block, instead of showing them."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, collector = logging.getLogger("llm_datadist"), Collector(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield lines
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates
