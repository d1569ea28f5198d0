"""Certificates that are expired, not valid yet, expire soon, or that peers refuse."""

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from llm_datadist.cli.doctor.certificate import certificates
from support.authority import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"), "the site")


def judged(files):
    """The findings about an instance's certificate and its authority."""
    return list(certificates(files["tls_cert"], files["tls_key"], files["tls_ca"]))


@pytest.mark.parametrize(
    ("days", "state", "seen", "remedy"),
    [
        ((-1, 100), "ok", "valid until", ""),
        ((-1, 10), "warning", "days from now", "issue a new certificate"),
        ((-10, -1), "problem", "which is past", "issue a new certificate"),
        ((1, 10), "problem", "only from", "clock"),
    ],
)
def test_the_dates(authority, days, state, seen, remedy):
    found, _ = judged(authority.issue(days=days))
    assert found.state == state
    assert seen in found.seen
    assert remedy in found.remedy


def test_an_authority_that_expires_soon(authority):
    _, found = judged(authority.issue(days=(-1, 100)))
    assert found.state == "warning"
    assert "the site valid until" in found.seen
    assert "issue a new certificate" in found.remedy


def test_a_certificate_of_another_authority(authority, tmp_path):
    other = Authority(tmp_path, "another")
    (found,) = judged(authority.issue() | {"tls_ca": other.ca})
    assert found.state == "problem"
    assert "local issuer" in found.seen
    assert "name the authority that issued it" in found.remedy


@pytest.mark.parametrize(
    "usage", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
)
def test_a_certificate_for_one_end_only(authority, usage):
    (found,) = judged(authority.issue(usages=(usage,)))
    assert found.state == "problem"
    assert "clients and servers alike" in found.remedy
