"""Secret and TLS of the environment: every mistake has a finding with its remedy."""

import pytest

from llm_datadist.cli.doctor.credentials import credentials
from support.authority import Authority

SECRET, SECRET_FILE = "LLM_DATADIST_SECRET", "LLM_DATADIST_SECRET_FILE"
LONG = "a secret of more than sixteen bytes"
TLS = {"tls_cert": "CERT", "tls_key": "KEY", "tls_ca": "CA"}

pytestmark = pytest.mark.expects_log("which other users can read")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Set variables; there are none of this library's before."""
    for name in (SECRET, SECRET_FILE, *(f"LLM_DATADIST_TLS_{kind}" for kind in TLS.values())):
        monkeypatch.delenv(name, raising=False)

    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


@pytest.fixture
def secret_file(tmp_path, environment):
    def write(text, mode=0o600):
        path = tmp_path / "secret"
        path.write_text(text)
        path.chmod(mode)
        environment(**{SECRET_FILE: path})
        return path

    return write


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def tls(environment):
    def put(files):
        environment(**{f"LLM_DATADIST_TLS_{kind}": files[name] for name, kind in TLS.items()})

    return put


def only():
    (found,) = credentials()
    return found


def test_nothing_is_set():
    found = only()
    assert found.state == "warning"
    assert "every process that can connect" in found.seen
    assert "LLM_DATADIST_SECRET_FILE=FILE" in found.remedy


def test_a_good_secret(secret_file, environment):
    secret_file(LONG)
    assert only().state == "ok"
    environment(**{SECRET_FILE: "", SECRET: LONG})
    assert only().state == "ok"


@pytest.mark.parametrize("where", ["file", "variable"])
def test_a_secret_that_can_be_guessed(secret_file, environment, where):
    if where == "file":
        secret_file("123\n")
    else:
        environment(**{SECRET: "123"})
    found = only()
    assert found.state == "warning"
    assert "fewer than 16 bytes" in found.seen
    assert "secrets.token_hex" in found.remedy


def test_two_secrets(secret_file, environment):
    secret_file(LONG)
    environment(**{SECRET: LONG})
    both, judged = credentials()
    assert (both.state, judged.state) == ("warning", "ok")
    assert "unset one of them" in both.remedy


def test_a_file_that_is_not_there(environment):
    environment(**{SECRET_FILE: "/none/at/all"})
    found = only()
    assert found.state == "problem"
    assert "cannot be read" in found.seen
    assert found.remedy == "name a file to read"


def test_an_empty_file(secret_file):
    secret_file("\n")
    found = only()
    assert found.state == "problem"
    assert found.remedy == "put the secret into the file"


def test_a_file_that_others_can_read(secret_file):
    path = secret_file(LONG, 0o644)
    open_to_all, judged = credentials()
    assert (open_to_all.state, judged.state) == ("warning", "ok")
    assert "mode 0644" in open_to_all.seen
    assert open_to_all.remedy == f"run chmod 600 {path}"


def test_a_file_that_every_user_can_write(secret_file):
    path = secret_file(LONG, 0o666)
    found = only()
    assert found.state == "problem"
    assert "every user can write" in found.seen
    assert f"chmod o-w {path}" in found.remedy


def test_tls_without_a_secret(authority, tls):
    tls(authority.issue(days=(-1, 100)))
    certificate, issuer = credentials()
    assert (certificate.state, issuer.state) == ("ok", "warning")  # it is valid for 10 days


def test_one_of_the_files_is_missing(authority, tls):
    tls(authority.issue() | {"tls_key": ""})
    found = only()
    assert found.state == "problem"
    assert "LLM_DATADIST_TLS_KEY" in found.seen
    assert "or none" in found.remedy


def test_the_key_of_another_certificate(authority, tls):
    tls(authority.issue() | {"tls_key": authority.issue()["tls_key"]})
    found = only()
    assert found.state == "problem"
    assert found.remedy == "name the key that belongs to the certificate"


def test_an_expired_certificate(authority, tls):
    tls(authority.issue(days=(-10, -1)))
    expired = next(each for each in credentials() if each.subject == "certificate")
    assert expired.state == "problem"
    assert "which is past" in expired.seen
    assert "issue a new certificate" in expired.remedy
