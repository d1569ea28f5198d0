"""Listening without a secret and without TLS: warned of, chosen, or refused."""

import pytest

from llm_datadist import LLMException, LLMRole, LLMStatusCode

PLACES = ("127.0.0.1:0", "0.0.0.0:0")


@pytest.fixture
def others(monkeypatch):
    monkeypatch.setattr("llm_datadist._links.listeners.has_other_users", lambda: True)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if "without a secret" in r.getMessage()]


@pytest.mark.expects_log("without a secret")
@pytest.mark.parametrize("listen", PLACES)
def test_one_warning_where_other_users_can_connect(instance, others, caplog, listen):
    instance(1, listen=listen).switch_role(
        LLMRole.PROMPT, {"llm.listenIpInfo": listen.replace("127.0.0.1", "127.0.0.2")}
    )
    (text,) = warnings(caplog)
    assert "link_secret" in text
    assert "llm.AllowAnonymous" in text


def test_no_warning_on_loopback_of_a_host_of_one_user(instance):
    instance(1)


@pytest.mark.parametrize("listen", PLACES)
def test_no_warning_when_it_is_the_choice(instance, others, listen):
    instance(1, listen=listen, allow_anonymous=True)


@pytest.mark.parametrize("listen", PLACES)
def test_no_warning_with_a_secret(instance, others, listen):
    instance(1, listen=listen, link_secret="s", allow_anonymous=False)


@pytest.mark.parametrize("listen", PLACES)
def test_refused_when_that_is_the_choice(instance, listen):
    with pytest.raises(LLMException, match=r"AllowAnonymous is 0.*link_secret") as caught:
        instance(1, listen=listen, allow_anonymous=False)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_a_client_may_but_may_not_begin_to_listen(instance):
    client = instance(1, listen=None, allow_anonymous=False)
    with pytest.raises(LLMException, match="AllowAnonymous is 0") as caught:
        client.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:0"})
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert client.listen_address is None
