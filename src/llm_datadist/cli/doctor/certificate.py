"""The certificates of TLS: a handshake in memory shows whether they hold, and until when."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any

from llm_datadist.cli.doctor.finding import ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["certificates"]

_ANY_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL: the dates are judged here."""
_DAY_S = 86400
_SOON_DAYS = 14
_MOST_ROUNDS = 10
_RENEW = "issue a new certificate, and restart the instances with it"


def certificates(cert: str, key: str, ca: str) -> Iterator[Finding]:
    """Judge an instance's certificate and its authorities. The files can be read.

    Args:
        cert: PEM file with the certificate.
        key: PEM file with its private key.
        ca: PEM file with the authorities.
    """
    subject = "certificate"
    client = _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)
    server = _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)
    try:
        shown = _shake_hands(client, server)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", "") or error.reason or str(error)
        yield problem(
            subject,
            f"{cert}: peers with the same files refuse it ({why})",
            f"name the authority that issued it ({ca}), and issue it for clients and servers alike",
        )
        return
    yield _judged(subject, f"{cert}: valid", shown)
    for authority in client.get_ca_certs():
        yield _judged("authority", f"{ca}: {_name(authority)}", authority)


def _judged(subject: str, seen: str, shown: dict[str, Any]) -> Finding:
    """Judge the dates of one certificate."""
    begins, ends = (ssl.cert_time_to_seconds(shown[name]) for name in ("notBefore", "notAfter"))
    now = time.time()
    if ends <= now:
        return problem(subject, f"{seen} until {shown['notAfter']}, which is past", _RENEW)
    if begins > now:
        return problem(
            subject,
            f"{seen} only from {shown['notBefore']} on",
            "correct this machine's clock, or issue another certificate",
        )
    seen = f"{seen} until {shown['notAfter']}"
    if ends < now + _SOON_DAYS * _DAY_S:
        days = (ends - now) / _DAY_S
        return warning(subject, f"{seen}, {days:.1f} days from now", _RENEW)
    return ok(subject, seen)


def _name(shown: dict[str, Any]) -> str:
    names = {key: value for part in shown.get("subject", ()) for key, value in part}
    return f"{names.get('commonName', 'an authority')} valid"


def _context(protocol: ssl._SSLMethod, cert: str, key: str, ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags(_ANY_TIME)
    context.load_verify_locations(cafile=ca)
    context.load_cert_chain(cert, key)
    return context


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    """Return the certificate that the server shows; both ends check the other's."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialing = client.wrap_bio(to_client, to_server)
    waiting = [dialing, server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(_MOST_ROUNDS):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    return dict(dialing.getpeercert() or {})
