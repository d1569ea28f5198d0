"""Options of mutual TLS, with real files (api.md 3, extension)."""

import ssl
from pathlib import Path

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._options import LLMConfig
from llm_datadist._options.parse import parse_options
from support.authority import Authority

CERT, KEY, CA, LANES = "llm.TlsCert", "llm.TlsKey", "llm.TlsCa", "llm.TlsLanes"
PROPERTIES = {CERT: "tls_cert", KEY: "tls_key", CA: "tls_ca"}
VARIABLES = {
    CERT: "LLM_DATADIST_TLS_CERT",
    KEY: "LLM_DATADIST_TLS_KEY",
    CA: "LLM_DATADIST_TLS_CA",
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def files(authority):
    """The three options."""
    issued = authority.issue()
    return {key: issued[name] for key, name in PROPERTIES.items()}


def parse(options, environ=()):
    return parse_options({"llm.EnableCacheManager": "1"} | options, dict(environ))


def refused(options, key, *texts, environ=()):
    with pytest.raises(LLMException) as caught:
        parse(options, environ)
    error = caught.value
    assert error.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert error.operation == "init"
    assert f"option {key} " in str(error)
    for text in texts:
        assert text in str(error)


def test_without_the_options_there_is_none():
    assert parse({}).tls is None
    assert parse({LANES: "0"}).tls is None


@pytest.mark.parametrize(
    ("lanes", "wanted"), [({}, False), ({LANES: "0"}, False), ({LANES: "1"}, True)]
)
def test_all_three_make_mutual_tls(files, lanes, wanted):
    tls = parse(files | lanes).tls
    assert tls.lanes is wanted
    for context in (tls.dialing, tls.accepting):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert len(context.get_ca_certs()) == 1
    assert repr(tls.dialing) not in repr(parse(files))


@pytest.mark.parametrize("missing", [CERT, KEY, CA])
def test_all_or_none(files, missing):
    others = {key: name for key, name in files.items() if key != missing}
    refused(others, missing, "is missing", "or none")
    first, *_ = others
    refused({first: others[first]}, *[key for key in files if key != first][:1], "is missing")


def test_encrypted_lanes_need_tls():
    refused({LANES: "1"}, LANES, CERT, KEY, CA)


@pytest.mark.parametrize("key", [CERT, KEY, CA])
@pytest.mark.parametrize("name", ["", "/none/at/all", "\0", "/"])
def test_a_file_that_cannot_be_read(files, key, name):
    refused(files | {key: name}, key, "cannot be read", "PEM")


@pytest.mark.parametrize("key", [CERT, KEY, CA])
@pytest.mark.parametrize("content", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_of_something_else(files, tmp_path, key, content):
    file = tmp_path / "file"
    file.write_text(content)
    refused(files | {key: str(file)}, key, str(file), "PEM")


def test_certificate_and_key_in_each_other_s_place(files):
    refused(files | {CERT: files[KEY], KEY: files[CERT]}, CERT, files[KEY])


def test_a_key_of_another_certificate(authority, files):
    other = authority.issue()
    refused(files | {KEY: other["tls_key"]}, KEY, other["tls_key"], f"option {CERT}", files[CERT])


def test_an_encrypted_key_asks_nobody(authority):
    """It must not wait for somebody at the terminal."""
    issued = authority.issue(password=b"secret")
    refused({key: issued[name] for key, name in PROPERTIES.items()}, KEY, "is encrypted")


def test_several_authorities_in_one_file(authority, files, tmp_path):
    bundle = tmp_path / "bundle"
    other = Authority(tmp_path, "another").ca
    bundle.write_bytes(Path(authority.ca).read_bytes() + Path(other).read_bytes())
    assert len(parse(files | {CA: str(bundle)}).tls.dialing.get_ca_certs()) == 2


def test_a_config_s_properties_are_these_options(files):
    config = LLMConfig()
    config.enable_cache_manager = True
    config.tls_cert, config.tls_key, config.tls_ca = files.values()
    config.tls_lanes = True
    assert config.generate_options() == files | {LANES: "1", "llm.EnableCacheManager": "1"}
    assert parse(config.generate_options()).tls.lanes


@pytest.fixture(scope="module")
def environ(files):
    """The same files, named by environment variables."""
    return {VARIABLES[key]: name for key, name in files.items()}


@pytest.mark.parametrize("lanes", ["0", "1"])
def test_the_environment_names_the_files_that_no_option_names(environ, lanes):
    assert parse({LANES: lanes}, environ).tls.lanes is (lanes == "1")
    assert parse({}, dict.fromkeys(environ, "")).tls is None


def test_one_option_keeps_the_whole_environment_out(files, environ):
    refused({CERT: files[CERT]}, KEY, "is missing", environ=environ)
    nowhere = dict.fromkeys(environ, "/none/at/all")
    assert parse(files, nowhere).tls is not None


@pytest.mark.parametrize("key", [CERT, KEY, CA])
def test_what_is_wrong_with_the_environment_names_the_variable(environ, key):
    variable = VARIABLES[key]
    text = f"{key} (environment variable {variable})"
    refused({}, key, text, "cannot be read", environ=environ | {variable: "/none/at/all"})
    refused({}, key, text, "is missing", environ=environ | {variable: ""})
