"""Real certificates for tests, in PEM files: an authority and the certificates that it issues."""

from __future__ import annotations

import datetime as dt
import itertools

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = dt.timedelta(days=1)
_BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
_numbers = itertools.count(1)


class Authority:
    """A certificate authority whose files are in a directory."""

    def __init__(self, directory, name="authority"):
        self._directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._builder(self._name, self._key.public_key(), -1, 10)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = self._write("ca", certificate)

    def issue(self, *, days=(-1, 10), usages=_BOTH, password=None):
        """Return the properties of LLMConfig for a new certificate that is valid now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"instance {next(_numbers)}")])
        certificate = (
            self._builder(name, key.public_key(), *days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        encryption = (
            serialization.NoEncryption()
            if password is None
            else serialization.BestAvailableEncryption(password)
        )
        key_file = self._path("key")
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
        )
        key_file.chmod(0o600)
        cert_file = self._write("cert", certificate)
        return {"tls_cert": cert_file, "tls_key": str(key_file), "tls_ca": self.ca}

    def _builder(self, subject, key, first_day, last_day):
        now = dt.datetime.now(dt.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + first_day * _DAY)
            .not_valid_after(now + last_day * _DAY)
        )

    def _path(self, kind):
        return self._directory / f"{kind}-{next(_numbers)}.pem"

    def _write(self, kind, certificate):
        path = self._path(kind)
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)
