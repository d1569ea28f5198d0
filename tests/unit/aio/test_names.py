"""Ids of names."""

import pytest

from llm_datadist.aio import block_cache_key, cluster_id_of
from llm_datadist.aio.names import cut_address


def test_ids_are_the_same_everywhere():
    assert cluster_id_of("prefill-0") == cluster_id_of("prefill-0") < 1 << 64
    key = block_cache_key("prefill-0", "kv")
    assert key == block_cache_key(cluster_id_of("prefill-0"), "kv")
    assert key.cluster_id == cluster_id_of("prefill-0")


def test_ids_of_different_names_differ():
    ids = {cluster_id_of(f"node-{number}") for number in range(1000)}
    ids |= {block_cache_key(1, f"node-{number}").model_id for number in range(1000)}
    assert len(ids) == 2000


@pytest.mark.parametrize(("name", "raised"), [("", ValueError), (7, TypeError), (None, TypeError)])
def test_what_is_no_name(name, raised):
    with pytest.raises(raised, match="name"):
        cluster_id_of(name)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:7", ("127.0.0.1", "7")),
        ("[::1]:7", ("[::1]", "7")),
        ("prefill-0", ("prefill-0", "")),
        (":7", (":7", "")),
        ("a:b", ("a:b", "")),
    ],
)
def test_addresses_are_told_from_names(text, parts):
    assert cut_address(text) == parts
