"""What pulls and pushes refuse, with what texts: items 43 to 45; types are in test_arguments."""

from llm_datadist import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from support.instances import failing


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
