"""What pulls and pushes refuse, with what texts: items 43 to 45; types are in test_arguments."""

import pytest

from llm_datadist import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from support.instances import failing

#: Operation -> its names of the key, the local cache, and the local slot or list of blocks.
SLOTS = {
    "pull_cache": ("cache_key", "cache", "batch_index"),
    "push_cache": ("dst_cache_key", "src_cache", "src_batch_index"),
}
BLOCKS = {
    "pull_blocks": ("src_cache_key", "dst_cache", "dst_blocks"),
    "push_blocks": ("dst_cache_key", "src_cache", "src_blocks"),
}


@pytest.mark.parametrize("operation", SLOTS)
def test_wrong_sizes_and_slots(sides, operation):
    """Items 43 and 45: each refusal names the argument; nothing has moved."""
    owner, user = sides
    remote, local = owner.slots(1), user.slots(2)
    before = remote.data.copy(), local.data.copy()
    key, cache, index = SLOTS[operation]
    for wrong, words in (
        ({"size": 0}, ["size is 0"]),
        ({"size": -2}, ["size is -2"]),
        ({"size": 1025}, ["size is 1025", "1024"]),
        ({index: 8}, [f"{index} is 8", "8 slots"]),
        ({key: remote.slot(8)}, ["slot 8", "batch_index 0 to 7"]),
        ({cache: user.slots(tensors=3).cache}, ["tensors", "3", "4"]),
        ({cache: user.slots(words=256).cache}, ["size is 2048", "peer's slot has 1024"]),
        ({cache: user.blocks().cache}, ["blocks cache"]),
    ):
        arguments = {key: remote.slot(), cache: local.cache} | wrong
        with failing("LLM_PARAM_INVALID", operation, *words):
            getattr(user.manager, operation)(**arguments)
    assert (remote.data == before[0]).all()
    assert (local.data == before[1]).all()


@pytest.mark.parametrize("operation", BLOCKS)
def test_wrong_indices(sides, operation):
    """Items 44 and 45: each refusal names the list and the index; nothing has moved."""
    owner, user = sides
    remote, local = owner.blocks(1, key=0, units=4), user.blocks(2, units=6)
    before = remote.data.copy(), local.data.copy()
    key, cache, local_list = BLOCKS[operation]
    remote_list = ({"src_blocks", "dst_blocks"} - {local_list}).pop()
    for wrong, words in (
        ({remote_list: [4], local_list: [0]}, [remote_list, "4 blocks"]),
        ({remote_list: [0], local_list: [6]}, [f"{local_list}[0] is 6", "6 blocks"]),
        ({remote_list: [0], local_list: [2**70]}, [f"{local_list}[0]"]),
        ({"src_blocks": [0, 1], "dst_blocks": [2, 2]}, ["dst_blocks[1] is 2 again"]),
        ({"src_blocks": [0, 1], "dst_blocks": [2]}, ["src_blocks has 2", "dst_blocks 1"]),
        ({"src_blocks": [], "dst_blocks": [2]}, ["src_blocks has 0"]),
        ({cache: user.blocks(words=64).cache}, ["512 bytes locally", "1024 at the peer"]),
        ({cache: user.blocks(tensors=2).cache}, ["tensors", "2", "4"]),
        ({cache: user.slots().cache}, [cache, "contiguous"]),
    ):
        lists = {"src_blocks": [0], "dst_blocks": [0]}
        arguments = {key: owner.blocks_key(), cache: local.cache} | lists | wrong
        with failing("LLM_PARAM_INVALID", operation, *words):
            getattr(user.manager, operation)(**arguments)
    assert (remote.data == before[0]).all()
    assert (local.data == before[1]).all()


def test_unknown_keys_and_clusters(sides):
    """Items 43 to 45: the three kinds of keys; statuses and texts."""
    _, user = sides
    slots, blocks = user.slots().cache, user.blocks().cache
    for status, cluster in (("LLM_KV_CACHE_NOT_EXIST", 1), ("LLM_NOT_YET_LINK", 9)):
        by_id = CacheKeyByIdAndIndex(cluster, 10**6)
        for operation, *arguments in (
            ("pull_cache", CacheKey(cluster, 4), slots),
            ("pull_cache", by_id, slots),
            ("pull_blocks", CacheKey(cluster, 4), blocks, [], [0]),
            ("pull_blocks", by_id, blocks, [], [0]),
            ("pull_blocks", BlocksCacheKey(cluster, 8), blocks, [0], [0]),
            ("push_blocks", BlocksCacheKey(cluster, 8), blocks, [0], [0]),
            ("push_cache", by_id, slots),
        ):
            with failing(status, operation, peer=cluster):
                getattr(user.manager, operation)(*arguments)
