"""Layer ranges and tensor_num_per_layer: checklist item 46."""

import pytest

from support.instances import failing


def pull(user, owner, target, **layers):
    user.manager.pull_blocks(owner.blocks_key(), target.cache, [1], [2], **layers)


def push(user, owner, source, **layers):
    user.manager.push_blocks(owner.blocks_key(), source.cache, [1], [2], **layers)


@pytest.mark.parametrize(
    ("src", "dst", "per_layer", "src_tensors", "dst_tensors"),
    [
        (range(1), range(1), 2, (0, 2), (0, 2)),
        (range(2, 4), range(1, 3), 2, (4, 8), (2, 6)),
        (range(5, 6), range(5), 1, None, None),
        (range(5, 6), range(1), 1, (5, 6), (0, 1)),
        (range(1, 2), range(1), 4, (4, 8), (0, 4)),
        (range(1), None, 8, (0, 8), (0, 8)),
        (None, range(4), 2, (0, 8), (0, 8)),
        (range(4), None, 2, (0, 8), (0, 8)),
        (None, None, 2, (0, 8), (0, 8)),
        (None, None, 3, (0, 8), (0, 8)),
        (None, range(2), 2, None, None),
        (range(2), None, 2, None, None),
    ],
)
def test_layers_of_pulls(sides, src, dst, per_layer, src_tensors, dst_tensors):
    """Item 46: layer L is tensors [L*N, (L+1)*N); start layers may differ; None is all."""
    owner, user = sides
    source, target = owner.blocks(1, key=0, tensors=8), user.blocks(2, tensors=8)
    source_slots, target_slots = owner.slots(3, tensors=8), user.slots(4, tensors=8)
    layers = {
        "src_layer_range": src,
        "dst_layer_range": dst,
        "tensor_num_per_layer": per_layer,
    }
    expected, expected_slots = target.data.copy(), target_slots.data.copy()
    calls = {
        "pull_blocks": (owner.blocks_key(), target.cache, [1], [2]),
        "pull_cache": (source_slots.slot(1), target_slots.cache, 2),
    }
    for operation, arguments in calls.items():
        call = getattr(user.manager, operation)
        if src_tensors is None:
            with failing("LLM_PARAM_INVALID", operation, "layer_range"):
                call(*arguments, **layers)
        else:
            call(*arguments, **layers)
    if src_tensors is not None:
        expected[slice(*dst_tensors), 2] = source.data[slice(*src_tensors), 1]
        expected_slots[slice(*dst_tensors), 2] = source_slots.data[slice(*src_tensors), 1]
    assert (target.data == expected).all()
    assert (target_slots.data == expected_slots).all()


def test_caches_of_different_depth(sides):
    """Item 46: with ranges, the numbers of layers may differ; without, they may not."""
    owner, user = sides
    source, target = owner.blocks(1, key=0, tensors=12), user.blocks(tensors=4)
    pull(user, owner, target, src_layer_range=range(4, 6), dst_layer_range=range(2))
    assert (target.data[:, 2] == source.data[8:, 1]).all()
    pull(user, owner, target, src_layer_range=range(1, 3))  # dst counts as all of its two
    assert (target.data[:, 2] == source.data[2:6, 1]).all()
    with failing("LLM_PARAM_INVALID", "pull_blocks", "12 tensors", "4"):
        pull(user, owner, target)


def test_contiguous_sources_by_layers(sides):
    """Item 46: pieces of a slot into blocks."""
    owner, user = sides
    source, target = owner.slots(1, words=256), user.blocks(words=64)
    user.manager.pull_blocks(
        source.slot(2),
        target.cache,
        [],
        [3, 0],
        src_layer_range=range(1, 2),
        dst_layer_range=range(1),
    )
    assert (target.data[:2, 3] == source.data[2:, 2, :64]).all()
    assert (target.data[:2, 0] == source.data[2:, 2, 64:128]).all()
    assert not target.data[2:].any()


def test_one_tensor_and_the_default_number_per_layer(sides):
    """Item 46: the default is not checked where no range is given."""
    owner, user = sides
    source, target = owner.blocks(1, key=0, tensors=1), user.blocks(tensors=1)
    pull(user, owner, target)
    assert (target.data[:, 2] == source.data[:, 1]).all()
    back = user.blocks(3, tensors=1)
    push(user, owner, back)
    assert (source.data[:, 2] == back.data[:, 1]).all()
    with failing("LLM_PARAM_INVALID", "pull_blocks", "tensor_num_per_layer is 2"):
        pull(user, owner, target, src_layer_range=range(1))


def test_layers_of_pushes(sides):
    """Item 46: equal ranges; positional too, in the documented order."""
    owner, user = sides
    target, source = owner.blocks(1, key=0, tensors=8), user.blocks(2, tensors=8)
    slots, own = owner.slots(3, tensors=8), user.slots(4, tensors=8)
    expected, expected_slots = target.data.copy(), slots.data.copy()
    layers = range(1, 3)
    user.manager.push_blocks(owner.blocks_key(), source.cache, [1], [2], layers, layers, 2)
    expected[2:6, 2] = source.data[2:6, 1]
    user.manager.push_cache(slots.slot(5), own.cache, 1, layers, layers, -1, 1)
    expected_slots[1:3, 5] = own.data[1:3, 1]
    push(user, owner, source, src_layer_range=range(3, 4), dst_layer_range=range(3, 4))
    expected[6:, 2] = source.data[6:, 1]
    assert (target.data == expected).all()
    assert (slots.data == expected_slots).all()
    unequal = {"src_layer_range": range(1), "dst_layer_range": range(1, 2)}
    with failing("LLM_PARAM_INVALID", "push_blocks", "range(0, 1)", "range(1, 2)"):
        push(user, owner, source, **unequal)
    with failing("LLM_PARAM_INVALID", "push_cache", "range(0, 1)", "range(1, 2)"):
        user.manager.push_cache(slots.slot(5), own.cache, **unequal)
    with failing("LLM_PARAM_INVALID", "push_blocks"):
        push(user, owner, source, src_layer_range=range(1))
    assert (target.data == expected).all()
