"""Files with a secret or key: a warning when others can read them, an error when they can write."""

import logging
import re

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._options.parse import parse_options
from support.authority import Authority

READABLE = pytest.mark.expects_log("which other users can read")


@pytest.fixture(params=["secret", "key"])
def given(request, tmp_path):
    """A private file, and a function that parses the options that name it."""
    if request.param == "secret":
        file = tmp_path / "in" / "secret"
        file.parent.mkdir()
        file.write_text("secret")
        options, environ = {}, {"LLM_DATADIST_SECRET_FILE": str(file)}
    else:
        issued = Authority(tmp_path).issue()
        names = {"llm.TlsCert": "tls_cert", "llm.TlsKey": "tls_key", "llm.TlsCa": "tls_ca"}
        options, environ = {key: issued[name] for key, name in names.items()}, {}
        file = tmp_path / "in" / "key.pem"
        file.parent.mkdir()
        file.write_bytes((tmp_path / options["llm.TlsKey"]).read_bytes())
        options["llm.TlsKey"] = str(file)
    file.chmod(0o600)
    return file, lambda: parse_options({"llm.EnableCacheManager": "1"} | options, environ)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_private_file_is_silent(given, mode):
    file, parse = given
    file.chmod(mode)
    parse()


@READABLE
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_file_that_others_can_read_is_named_once(given, caplog, mode):
    file, parse = given
    file.chmod(mode)
    for _ in range(2):
        parse()
    (text,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"run chmod 600 {file}" in text


def refused(parse, place):
    with pytest.raises(LLMException, match=re.escape(f"chmod o-w {place}")) as caught:
        parse()
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_a_file_that_others_can_write_is_refused(given):
    file, parse = given
    file.chmod(0o602)
    refused(parse, file)


def test_a_directory_where_others_can_replace_it_is_refused(given):
    file, parse = given
    file.parent.chmod(0o777)
    refused(parse, file.parent)
    file.parent.chmod(0o1777)
    parse()


def test_the_directory_behind_a_link_counts(given):
    file, parse = given
    hidden = file.parent / "open"
    hidden.mkdir()
    hidden.chmod(0o777)
    file.rename(hidden / file.name)
    file.symlink_to(hidden / file.name)
    refused(parse, hidden)
