"""Links with a shared secret (api.md 3: link_secret)."""

import pytest

from llm_datadist import BlocksCacheKey, LLMConfig, LLMStatusCode

S = LLMStatusCode
OK = (S.LLM_SUCCESS, [S.LLM_SUCCESS])
REFUSED = (S.LLM_LINK_FAILED, [S.LLM_LINK_FAILED])
SECRET = "correct horse battery staple"
OTHER = "incorrect horse"
CLOSED = pytest.mark.expects_log("link_clusters: ", "has another secret", "closed")


def moves(near, far, blocks):
    blocks(near, 1)
    cache, memory = blocks(far, 2)
    far.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    return (memory[:, 0] == 1).all()


@pytest.mark.parametrize("backend", ["host", "tcp"])
@pytest.mark.parametrize("secret", [SECRET, "x", "ключ 🔑", "a" * 5000])
def test_both_sides_have_it(instance, info, blocks, backend, secret):
    """api.md checklist 60."""
    near, far = (
        instance(number, link_secret=secret, transfer_backend=backend) for number in (1, 2)
    )
    assert far.link_clusters([info(near)]) == OK
    assert moves(near, far, blocks)
    assert near.link_clusters([info(far)]) == OK


@CLOSED
@pytest.mark.parametrize(
    ("dialer_secret", "acceptor_secret"),
    [
        (SECRET, None),
        (None, SECRET),
        (SECRET, OTHER),
        (SECRET, SECRET + "e"),
        (SECRET, SECRET[:-1]),
    ],
)
def test_one_side_or_another(instance, info, failure, caplog, dialer_secret, acceptor_secret):
    """api.md checklist 60."""
    near, far = (
        instance(number, **({} if secret is None else {"link_secret": secret}))
        for number, secret in ((1, acceptor_secret), (2, dialer_secret))
    )
    assert far.link_clusters([info(near)]) == REFUSED
    assert near.link_clusters([info(far)]) == REFUSED
    for side, other in ((near, 2), (far, 1)):
        assert failure(side.describe_link, other).status_code is S.LLM_NOT_YET_LINK
    assert "link_secret" in caplog.text
    assert SECRET not in caplog.text
    assert OTHER not in caplog.text


@pytest.mark.parametrize("way", ["LLM_DATADIST_SECRET", "LLM_DATADIST_SECRET_FILE"])
def test_it_may_come_from_the_environment(instance, info, blocks, monkeypatch, tmp_path, way):
    """api.md checklist 60."""
    near = instance(1, link_secret=SECRET)
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    monkeypatch.setenv(way, str(file) if way.endswith("FILE") else SECRET)
    far = instance(2)
    assert far.link_clusters([info(near)]) == OK
    assert moves(near, far, blocks)


@CLOSED
def test_a_refused_peer_disturbs_nobody(instance, info, blocks):
    """api.md checklist 60."""
    near, far = instance(1, link_secret=SECRET), instance(2, link_secret=SECRET)
    assert far.link_clusters([info(near)]) == OK
    for number, secret in ((2, OTHER), (3, OTHER)):
        assert instance(number, link_secret=secret).link_clusters([info(near)]) == REFUSED
    far.check_link_status(1)
    assert moves(near, far, blocks)


def test_an_instance_with_a_secret_links_to_itself(instance, info):
    """api.md checklist 60."""
    one = instance(1, link_secret=SECRET)
    assert one.link_clusters([info(one)]) == OK


def test_it_is_nowhere_to_be_seen(instance, info, caplog):
    """api.md checklist 60, 61."""
    caplog.set_level("DEBUG")
    near, far = instance(1, link_secret=SECRET), instance(2, link_secret=SECRET)
    assert far.link_clusters([info(near)]) == OK
    config = LLMConfig()
    config.link_secret = SECRET
    shown = [repr(near), str(config), repr(config), far.describe_link(1), near._engine.config]
    assert SECRET not in str(shown) + caplog.text
