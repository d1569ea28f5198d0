"""pull_resharded and push_resharded: several links, one deadline, one result."""

import threading

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMException
from llm_datadist.testing import FaultPolicy, FaultRule, inject_faults
from support.instances import LASTING, PAGE, Pages, Side, failing, finalize, link
from support.kv_caches import HEAD_SIZE, HEADS, LAYERS, NUM_BLOCKS, KvCache, tokens_of_model

FIRST, SECOND, OWN = 1, 2, 3
KEYS = (BlocksCacheKey(FIRST), BlocksCacheKey(SECOND))
BLOCKS = [[7, 2, 9, 4], [1, 8, 3, 6]]
TOKENS = 13


@pytest.fixture(scope="module")
def linked(backend):
    """Two ranks, and a side that is linked to both and verifies its transfers."""
    ranks = [Side(FIRST, backend, **LASTING), Side(SECOND, backend, **LASTING)]
    own = Side(OWN, backend, checksum="crc32c", sync_kv_timeout=2000, **LASTING)
    link(own.instance, ranks[0].address, ranks[1].address)
    made = [KvCache(rank, tp=2, rank=index) for index, rank in enumerate(ranks)]
    local = KvCache(own, "HND", block_tokens=2)
    every = list(range(NUM_BLOCKS))
    own.manager.pull_resharded(KEYS, local.cache, [every] * 2, every, 2 * NUM_BLOCKS)
    own.manager.push_resharded(KEYS, local.cache, every, [every] * 2, 2 * NUM_BLOCKS)
    for side, held in zip((*ranks, own), (*made, local), strict=True):
        side.manager.unregister_cache(held.id)
        side.held.clear()
    yield *ranks, own
    finalize(*ranks, own)


@pytest.fixture
def sides(linked):
    yield linked
    for side in linked:
        side.clean()


def sources(sides, axes="NHD", **other):
    """Heads 0 and 1 at the first rank, 2 and 3 at the second, with tokens of a model in them."""
    model = tokens_of_model(TOKENS)
    made = []
    for index, side in enumerate(sides[:2]):
        made.append(KvCache(side, axes, tp=2, rank=index, **other))
        made[-1].put(model, BLOCKS[index])
    return made, model


@pytest.mark.parametrize("axes", ["NHD", "HND"])
@pytest.mark.parametrize("block_tokens", [2, 4, 6])
def test_a_pull_from_two_ranks(sides, axes, block_tokens):
    _, model = sources(sides)
    own = sides[2]
    local = KvCache(own, axes, block_tokens=block_tokens)
    dst = [11, 0, 5, 3, 8, 10, 1][: -(-TOKENS // block_tokens)]
    own.manager.pull_resharded(KEYS, local.cache, BLOCKS, dst, TOKENS)
    assert (local.tokens(dst, TOKENS) == model).all()
    assert np.count_nonzero(local.rows) == model.size


def test_no_tokens_move_nothing(sides):
    sources(sides)
    own = sides[2]
    local = KvCache(own)
    own.manager.pull_resharded(KEYS, local.cache, BLOCKS, [], 0)
    assert not local.rows.any()


def test_a_part_of_the_tokens_and_layers(sides):
    _, model = sources(sides, "HND")
    own = sides[2]
    local = KvCache(own, block_tokens=3)
    own.manager.pull_resharded(
        KEYS, local.cache, BLOCKS, [4, 2, 7], 6, src_offset=5, dst_offset=2, layers=range(1, 3)
    )
    assert (local.tokens([4, 2, 7], 6, 2)[1:] == model[1:, :, 5:11]).all()
    assert np.count_nonzero(local.rows) == model[1:, :, 5:11].size


def test_a_push_to_two_ranks(sides):
    model = tokens_of_model(TOKENS)
    own = sides[2]
    local = KvCache(own, "HND", block_tokens=5)
    local.put(model, [3, 9, 1])
    made = [KvCache(side, tp=2, rank=index) for index, side in enumerate(sides[:2])]
    own.manager.push_resharded(KEYS, local.cache, [3, 9, 1], BLOCKS, TOKENS)
    for blocks, remote in zip(BLOCKS, made, strict=True):
        assert (remote.tokens(blocks, TOKENS) == remote.part(model)).all()
        assert np.count_nonzero(remote.rows) == remote.part(model).size


def test_equal_layouts_move_as_whole_blocks(sides):
    rank, _, own = sides
    model = tokens_of_model(8)
    remote, local = KvCache(rank), KvCache(own)
    remote.put(model, [7, 8])
    own.manager.pull_resharded([KEYS[0]], local.cache, [[5, 7, 8]], [2, 9], 8, src_offset=4)
    assert (local.tokens([2, 9], 8) == model).all()
    own.manager.push_resharded(
        [KEYS[0]], local.cache, [2, 9], [[0, 3, 1]], 4, src_offset=4, dst_offset=8
    )
    assert (remote.tokens([1], 4) == model[:, :, 4:]).all()


def test_no_tokens_check_the_links_and_layouts_only(sides):
    sources(sides)
    own = sides[2]
    local = KvCache(own)
    own.manager.pull_resharded(KEYS, local.cache, [[], []], [], 0)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_resharded", "source 0 of 1", peer=FIRST):
        own.manager.pull_resharded([BlocksCacheKey(FIRST, 9)], local.cache, [[]], [], 0)


def test_an_explanation_moves_nothing(sides):
    made, _ = sources(sides)
    own = sides[2]
    local = KvCache(own, "HND")
    arguments = (KEYS, local.cache, BLOCKS, [1, 2, 3, 4], TOKENS)
    reports = own.manager.explain_resharded(*arguments)
    assert not local.rows.any()
    assert [(report.rank, report.cluster_id) for report in reports] == [(0, FIRST), (1, SECOND)]
    assert [report.parts[0].heads for report in reports] == [range(2), range(2, 4)]
    for report, source in zip(reports, made, strict=True):
        assert report.total_bytes == source.part(tokens_of_model(TOKENS)).nbytes
        assert report.piece_bytes < 2 * HEAD_SIZE * 4
        assert 0 < report.expected_rate < 0.5
        assert "along head the source goes on after 32 bytes, the destination after 128" in (
            report.reason
        )
    (report,) = own.manager.explain_resharded(
        [KEYS[0]], local.cache, [BLOCKS[0]], [1, 2, 3, 4], TOKENS, push=True
    )
    assert report.backend in {"host", "tcp"}
    with failing("LLM_PARAM_INVALID", "explain_resharded", "heads range(2, 4)"):
        own.manager.explain_resharded([KEYS[0]], local.cache, [BLOCKS[0]], [1, 2, 3, 4], TOKENS)


# What is refused, before anything moves.


def test_caches_without_a_layout_are_named(sides):
    rank, _, own = sides
    KvCache(rank, described=False)
    local = KvCache(own)
    words = ("source 0 of 1", "the peer registered cache ", " without a layout")
    with failing("LLM_PARAM_INVALID", "pull_resharded", *words, peer=FIRST):
        own.manager.pull_resharded([KEYS[0]], local.cache, [[1]], [1], 4)
    bare = KvCache(own, described=False, key=5)
    with failing("LLM_PARAM_INVALID", "push_resharded", "src_cache is cache"):
        own.manager.push_resharded([KEYS[0]], bare.cache, [1], [[1]], 4)


def test_a_layout_that_does_not_fit_is_refused(sides):
    local = KvCache(sides[2])
    desc = CacheDesc(4, list(local.tensors.shape[1:]), DataType.DT_UINT32)
    addrs = local.cache.tensor_addrs[:4]
    with failing("LLM_PARAM_INVALID", "register_blocks_cache", "num_tensors is 4", "has 6"):
        sides[2].manager.register_blocks_cache(desc, addrs, layout=local.layout)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"src_cache_keys": KEYS[:1], "src_blocks": BLOCKS[:1]}, ["heads range(2, 4)"]),
        ({"src_blocks": BLOCKS[:1]}, ["2 keys", "1 lists"]),
        ({"src_blocks": [BLOCKS[0], [1, 2, 3]]}, ["src_blocks[1] has 3 blocks", "4 are needed"]),
        ({"src_blocks": [BLOCKS[0], [1, 2, 3, 99]]}, ["source 1 of 2", "99", "12 blocks"]),
        ({"dst_blocks": [1, 2, 3]}, ["dst_blocks has 3 blocks", "4 are needed"]),
        ({"dst_blocks": [1, 2, 3, 1]}, ["dst_blocks[3] is 1 again"]),
        ({"layers": range(2, 4)}, ["range(2, 4)", "range(0, 3)"]),
        ({"src_cache_keys": (), "src_blocks": []}, ["0 keys"]),
        ({"src_layouts": []}, ["2 keys", "src_layouts 0 layouts"]),
    ],
)
def test_arguments_that_do_not_fit(sides, change, words):
    sources(sides)
    own = sides[2]
    arguments = {
        "src_cache_keys": KEYS, "dst_cache": KvCache(own).cache, "src_blocks": BLOCKS,
        "dst_blocks": [1, 2, 3, 4], "num_tokens": TOKENS,
    }  # fmt: skip
    with failing("LLM_PARAM_INVALID", "pull_resharded", *words):
        own.manager.pull_resharded(**arguments | change)


def test_a_source_with_another_layout_than_expected_is_refused(sides):
    """Ranks that hold each other's heads, and one that has changed its layout since."""
    made, model = sources(sides)
    own = sides[2]
    local = KvCache(own)
    layouts = [each.layout for each in made]
    arguments = (KEYS, local.cache, BLOCKS, [1, 2, 3, 4], TOKENS)
    words = ("source 0 of 2", "heads=range(0, 2)", "src_layouts[0]", "heads=range(2, 4)")
    with failing("LLM_PARAM_INVALID", "pull_resharded", *words, peer=FIRST):
        own.manager.pull_resharded(*arguments, src_layouts=layouts[::-1])
    own.manager.pull_resharded(*arguments, src_layouts=layouts)
    assert (local.tokens([1, 2, 3, 4], TOKENS) == model).all()
    sides[0].manager.unregister_cache(made[0].id)
    KvCache(sides[0], "HND", tp=2, rank=0)
    with failing("LLM_PARAM_INVALID", "pull_resharded", "src_layouts[0]", peer=FIRST):
        own.manager.pull_resharded(*arguments, src_layouts=layouts)


def test_wrong_types(sides):
    own = sides[2]
    local = KvCache(own).cache
    for arguments in (
        (KEYS[0], local, BLOCKS, [1], 4),
        ([7], local, BLOCKS, [1], 4),
        (KEYS, None, BLOCKS, [1], 4),
        (KEYS, local, BLOCKS, [1.5], 4),
        (KEYS, local, [[1], ["x"]], [1], 4),
        (KEYS, local, BLOCKS, [1], 4.0),
    ):
        with pytest.raises(TypeError):
            own.manager.pull_resharded(*arguments)
    with pytest.raises(TypeError, match=r"src_layouts\[0\]"):
        own.manager.pull_resharded(KEYS, local, BLOCKS, [1], 4, src_layouts=["NHD", "NHD"])
    with pytest.raises(ValueError, match="num_tokens"):
        own.manager.pull_resharded(KEYS, local, BLOCKS, [1], -1)
    with pytest.raises(TypeError, match="layers"):
        own.manager.push_resharded(KEYS, local, [1], BLOCKS, 4, layers=3)


# Failures: the rank, its blocks, and everything else that was to be moved.


def test_a_rank_that_fails_names_itself_and_its_blocks(sides):
    made, model = sources(sides)
    own = sides[2]
    local = KvCache(own)
    policy = FaultPolicy([FaultRule("refuse", cluster_id=SECOND)])
    words = ("source 1 of 2", "4 blocks (1, 8, 3, 6)")
    with (
        inject_faults(own.instance, policy),
        failing("LLM_FAILED", "pull_resharded", *words, peer=SECOND),
    ):
        own.manager.pull_resharded(KEYS, local.cache, BLOCKS, [0, 1, 2, 3], TOKENS)
    moved = local.tokens([0, 1, 2, 3], TOKENS)
    assert (moved[..., :2, :] == model[..., :2, :]).all()
    assert not moved[..., 2:, :].any()
    words = ("source 1 of 2", "no cache under")
    sides[1].manager.unregister_cache(made[1].id)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_resharded", *words, peer=SECOND):
        own.manager.pull_resharded(KEYS, local.cache, BLOCKS, [0, 1, 2, 3], TOKENS)
    with failing("LLM_NOT_YET_LINK", "pull_resharded", "source 1 of 2", peer=77):
        own.manager.pull_resharded(
            (KEYS[0], BlocksCacheKey(77)), local.cache, BLOCKS, [0, 1, 2, 3], TOKENS
        )


def test_all_failures_are_named(sides):
    sources(sides)
    own = sides[2]
    policy = FaultPolicy([FaultRule("refuse")])
    with (
        inject_faults(own.instance, policy),
        failing("LLM_FAILED", "pull_resharded", "source 0 of 2", "source 1 [LLM_FAILED]"),
    ):
        own.manager.pull_resharded(KEYS, KvCache(own).cache, BLOCKS, [0, 1, 2, 3], TOKENS)


def test_one_deadline_holds_for_all_ranks_which_run_at_the_same_time(sides, monkeypatch):
    sources(sides)
    own = sides[2]
    attempts = own.instance._engine.resharding._attempts
    together = threading.Barrier(2, timeout=10)
    deadlines = []

    def run(request):
        together.wait()
        deadlines.append(request.deadline_ns)

    monkeypatch.setattr(attempts, "run", run)
    own.manager.pull_resharded(KEYS, KvCache(own).cache, BLOCKS, [0, 1, 2, 3], TOKENS)
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]


@pytest.mark.expects_log("met a fault in local memory")
def test_memory_at_fault_is_named_and_the_rest_arrives(sides):
    block_tokens = PAGE // (HEADS // 2 * HEAD_SIZE * 4)  # a block of a rank is one page
    pages = Pages(2 * LAYERS, NUM_BLOCKS)
    first, second, own = sides
    model = tokens_of_model(2 * block_tokens)
    try:
        made = [
            KvCache(first, tp=2, rank=0, block_tokens=block_tokens),
            KvCache(second, tp=2, rank=1, block_tokens=block_tokens, data=pages.data),
        ]
        for cache in made:
            cache.put(model, [5, 6])
        local = KvCache(own, block_tokens=2 * block_tokens)
        pages.protect(3, 6)
        words = ("source 1 of 2", "block 6", "2 blocks (5, 6)")
        with failing("LLM_SUSPECT_REMOTE_ERROR", "pull_resharded", *words, peer=SECOND) as caught:
            own.manager.pull_resharded(KEYS, local.cache, [[5, 6]] * 2, [1], 2 * block_tokens)
        assert {(fault.cluster_id, fault.tensor_index, fault.block) for fault in
                caught.value.faults} == {(SECOND, 3, 6)}  # fmt: skip
        missing = local.tokens([1], 2 * block_tokens) != model
        # Tensor 3 is V of layer 1; block 6 has the second half of the tokens.
        assert missing[1, 1, block_tokens:, 2:].all()
        assert missing.sum() == missing[1, 1, block_tokens:, 2:].size
    finally:
        second.clean()
        pages.replace(3, 6)
        pages.close()


def test_bytes_that_differ_are_never_success(sides):
    sources(sides)
    own = sides[2]
    local = KvCache(own, "HND", block_tokens=8)
    policy = FaultPolicy([FaultRule("corrupt", cluster_id=SECOND)], seed=3)
    with (
        inject_faults(own.instance, policy),
        pytest.raises(LLMException, match=r"source 1 of 2.*crc32c") as caught,
    ):
        own.manager.pull_resharded(KEYS, local.cache, BLOCKS, [4, 2], TOKENS)
    assert {fault.cache_id for fault in caught.value.faults} == {local.id}
    assert {fault.block for fault in caught.value.faults} <= {2, 4}


def test_a_cache_of_another_layout_that_takes_the_key_during_the_call(sides, monkeypatch):
    made, _ = sources(sides)
    own, second = sides[2], sides[1]
    local = KvCache(own)
    attempts = own.instance._engine.resharding._attempts
    look_up = attempts.look_up

    def then_replaced(request):
        found = look_up(request)
        if request.key.cluster_id == SECOND:
            second.manager.unregister_cache(made[1].id)
            KvCache(second, "HND", tp=2, rank=1)
        return found

    monkeypatch.setattr(attempts, "look_up", then_replaced)
    words = ("source 1 of 2", "another layout")
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_resharded", *words, peer=SECOND):
        own.manager.pull_resharded(KEYS, local.cache, BLOCKS, [0, 1, 2, 3], TOKENS)
