"""Read the files of mutual TLS that the options name; once, in `init`.

Source: api.md 3 (extensions).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_datadist._options import keys
from llm_datadist._options.private_files import check_private
from llm_datadist._options.settings import Tls

if TYPE_CHECKING:
    from llm_datadist._options.reader import OptionReader

__all__ = ["parse_tls"]

_FILES: Final = {
    keys.TLS_CERT: keys.ENV_TLS_CERT,
    keys.TLS_KEY: keys.ENV_TLS_KEY,
    keys.TLS_CA: keys.ENV_TLS_CA,
}


class _File(NamedTuple):
    """The file of one option.

    Attributes:
        name: The file.
        source: The option for texts, with the environment variable if that names the file.
    """

    name: str
    source: str


def parse_tls(reader: OptionReader) -> Tls | None:
    """Return the contexts of mutual TLS, or None if nothing names a file.

    The three files come from the options, or, if none of these is there, from the environment.

    Raises:
        LLMException: LLM_PARAM_INVALID: one of the three is missing, or a file cannot be read, is
            invalid, or does not match another; the text names the option.
    """
    names = {key: reader.text(key) for key in _FILES}
    sources = {key: key for key in _FILES}
    if all(name is None for name in names.values()):
        names = {key: reader.environment(variable) or None for key, variable in _FILES.items()}
        sources = {key: f"{key} (environment variable {each})" for key, each in _FILES.items()}
    lanes = reader.switch(keys.TLS_LANES) or False
    given = [sources[key] for key, name in names.items() if name is not None]
    if not given:
        if lanes:
            every = ", ".join(_FILES)
            raise reader.invalid(
                keys.TLS_LANES, "is on without TLS", f"set options {every} as well"
            )
        return None
    files = {
        key: _File(_existing(reader, sources[key], name, given[0]), sources[key])
        for key, name in names.items()
    }
    _check_certificates(reader, files[keys.TLS_CERT])
    _check_certificates(reader, files[keys.TLS_CA])
    dialing = _context(reader, ssl.PROTOCOL_TLS_CLIENT, files)
    accepting = _context(reader, ssl.PROTOCOL_TLS_SERVER, files)
    check_private(reader, files[keys.TLS_KEY].source, files[keys.TLS_KEY].name)
    return Tls(dialing, accepting, lanes)


def _existing(reader: OptionReader, source: str, name: str | None, given: str) -> str:
    """Return the name of an option's file after checking that it can be read."""
    if name is None:
        every = ", ".join(_FILES)
        raise reader.invalid(
            source, f"is missing and option {given} is set", f"set all of {every}, or none"
        )
    try:
        Path(name).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        problem = f"names the file {name!r}, which cannot be read: {why}"
        raise reader.invalid(source, problem, "name a PEM file to read") from None
    return name


def _check_certificates(reader: OptionReader, file: _File) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file.name)
    except (OSError, ValueError) as error:
        problem = f"names the file {file.name!r}, which holds no PEM certificate ({_words(error)})"
        raise reader.invalid(file.source, problem, "name a file with certificates in PEM") from None


def _context(
    reader: OptionReader, protocol: ssl._SSLMethod, files: dict[str, _File]
) -> ssl.SSLContext:
    """Return a context with this end's certificate that accepts peers of the same authorities.

    Host names are not checked: instances are found by address, and all certificates of an authority
    are equivalent. Sessions are not resumed, so that every connection shows a certificate.
    """
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if protocol is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.load_verify_locations(cafile=files[keys.TLS_CA].name)
    _load_key(reader, context, files)
    return context


def _load_key(reader: OptionReader, context: ssl.SSLContext, files: dict[str, _File]) -> None:
    encrypted = False

    def password() -> str:  # otherwise OpenSSL would ask on the terminal
        nonlocal encrypted
        encrypted = True
        return ""

    certificate, key = files[keys.TLS_CERT], files[keys.TLS_KEY]
    try:
        context.load_cert_chain(certificate.name, key.name, password)
    except (OSError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            problem = (
                f"names the file {key.name!r}, whose key is not that of the certificate of option "
                f"{certificate.source} ({certificate.name!r})"
            )
            remedy = "name the key that belongs to the certificate"
        elif encrypted:
            problem = f"names the file {key.name!r}, whose key is encrypted"
            remedy = "name an unencrypted key that only this user can read"
        else:
            problem = (
                f"names the file {key.name!r}, which holds no usable PEM key ({_words(error)})"
            )
            remedy = "name a file with the private key in PEM"
        raise reader.invalid(key.source, problem, remedy) from None


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return reason.replace("_", " ").lower() if isinstance(reason, str) else str(error)
