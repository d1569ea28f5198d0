"""Ids of names."""

import pytest

from llm_datadist.aio import block_cache_key, cluster_id_of
from llm_datadist.aio.names import cut_address


def test_ids_are_the_same_everywhere():
    """In each process and release: peers compute them, too."""
    key = block_cache_key("prefill-0", "kv")
    assert (key.cluster_id, key.model_id) == (7024914150317286851, 10331827096099771028)
    assert cluster_id_of("prefill-0") == key.cluster_id
    assert block_cache_key(key.cluster_id, "kv") == key


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
