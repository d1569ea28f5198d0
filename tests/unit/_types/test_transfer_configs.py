"""Transfer configs, synchronizers and memory ranges (api.md 6)."""

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._types import (
    BlocksCacheKey,
    CacheKey,
    CacheKeyByIdAndIndex,
    LayerSynchronizer,
    MemInfo,
    Memtype,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

SLOT, BLOCKS = CacheKeyByIdAndIndex(1, 2), BlocksCacheKey(1)
DEVICE = Memtype.MEM_TYPE_DEVICE
NOT_INTS = ["1", None, 1.0, True]
BAD_RANGES = [range(0), range(3, 3), range(3, 1), range(0, 4, 2), range(3, 0, -1), range(-1, 2)]


def by_addr():
    return TransferConfig(1, [4096, 8192])


def by_key(key=SLOT):
    return TransferWithCacheKeyConfig(key)


def assign(make, name, value):
    config = make()
    setattr(config, name, value)
    return getattr(config, name)


def construct(make, name, value):
    if make is by_addr:
        return TransferConfig(**{"dst_cluster_id": 1, "dst_addrs": []} | {name: value})
    return TransferWithCacheKeyConfig(**{"cache_key": SLOT} | {name: value})


both_ways = pytest.mark.parametrize("put", [assign, construct])


def test_configs_have_the_documented_defaults():
    config = by_addr()
    assert (config.dst_cluster_id, config.dst_addrs) == (1, [4096, 8192])
    assert (config.src_layer_range, config.src_batch_index) == (None, 0)
    config = by_key()
    assert config.cache_key is SLOT
    assert (config.src_layer_range, config.dst_layer_range) == (None, None)
    assert config.src_batch_index == 0


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (by_addr, "dst_cluster_id", 2**64 - 1),
        (by_addr, "dst_cluster_id", np.uint64(5)),
        (by_addr, "dst_addrs", [0, 2**64 - 1]),
        (by_addr, "src_layer_range", range(2, 5)),
        (by_addr, "src_layer_range", None),
        (by_addr, "src_batch_index", 2**32 - 1),
        (by_key, "cache_key", BLOCKS),
        (by_key, "src_layer_range", range(1)),
        (by_key, "dst_layer_range", range(7, 9)),
        (by_key, "src_batch_index", 3),
    ],
)
def test_a_property_gives_what_was_set(make, name, value):
    assert assign(make, name, value) == value


@both_ways
@pytest.mark.parametrize("value", NOT_INTS)
@pytest.mark.parametrize(
    ("make", "name"),
    [(by_addr, "dst_cluster_id"), (by_addr, "src_batch_index"), (by_key, "src_batch_index")],
)
def test_a_number_of_another_type_is_a_type_error(put, make, name, value):
    """api.md checklist 5."""
    with pytest.raises(TypeError, match=f"{name} must be int"):
        put(make, name, value)


@both_ways
@pytest.mark.parametrize(
    ("make", "name", "high"),
    [
        (by_addr, "dst_cluster_id", 2**64),
        (by_addr, "src_batch_index", 2**32),
        (by_key, "src_batch_index", 2**32),
    ],
)
def test_a_number_outside_its_width_is_a_value_error(put, make, name, high):
    """api.md checklist 5."""
    for value in (-1, high):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            put(make, name, value)


@both_ways
@pytest.mark.parametrize("value", [None, 1, "12", [1, "2"], [1.0], [None], [True]])
def test_addresses_of_another_type_are_a_type_error(put, value):
    """api.md checklist 5."""
    with pytest.raises(TypeError, match="dst_addrs"):
        put(by_addr, "dst_addrs", value)


@both_ways
@pytest.mark.parametrize("value", [-1, 2**64])
def test_addresses_outside_uint64_are_a_value_error(put, value):
    """api.md checklist 5."""
    with pytest.raises(ValueError, match=r"dst_addrs\[1\]"):
        put(by_addr, "dst_addrs", [1, value])


@both_ways
@pytest.mark.parametrize(
    ("make", "name"),
    [(by_addr, "src_layer_range"), (by_key, "src_layer_range"), (by_key, "dst_layer_range")],
)
def test_layers_are_a_range_of_step_1(put, make, name):
    """api.md checklist 5 and 47."""
    for value in ([0, 1], 1, (0, 2), "0"):
        with pytest.raises(TypeError, match=f"{name} must be range"):
            put(make, name, value)
    for value in BAD_RANGES:
        with pytest.raises(LLMException, match=name) as caught:
            put(make, name, value)
        assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_a_range_of_one_layer_has_step_1_too():
    with pytest.raises(LLMException):
        assign(by_addr, "src_layer_range", range(0, 1, 2))


@both_ways
@pytest.mark.parametrize("key", [None, 1, "key", CacheKey(1, 2)])
def test_a_destination_is_a_blocks_key_or_a_key_by_id(put, key):
    """api.md checklist 47."""
    with pytest.raises(TypeError, match="cache_key must be BlocksCacheKey or CacheKeyByIdAndIndex"):
        put(by_key, "cache_key", key)


def test_a_failed_setter_leaves_the_earlier_value():
    config = by_addr()
    with pytest.raises(ValueError, match="dst_addrs"):
        config.dst_addrs = [-1]
    assert config.dst_addrs == [4096, 8192]


def test_addresses_are_taken_and_given_out_as_copies():
    addrs = [1, 2]
    config = TransferConfig(1, addrs)
    addrs.append(3)
    config.dst_addrs.append(4)
    assert config.dst_addrs == [1, 2]


def test_both_ranges_of_a_keyed_config_come_out_at_use():
    config = TransferWithCacheKeyConfig(SLOT, range(2), range(5, 7), 3)
    assert config.ranges("transfer_cache_async") == (range(2), range(5, 7))
    assert TransferWithCacheKeyConfig(BLOCKS, range(2), range(2)).ranges("x")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((SLOT, None, range(1)), "src_layer_range of"),
        ((SLOT, range(1)), "dst_layer_range of"),
        ((SLOT, range(1), range(2)), "has 1 layers, dst_layer_range 2"),
        ((BLOCKS, range(1), range(1), 1), "src_batch_index is 1 with a BlocksCacheKey"),
    ],
)
def test_a_keyed_config_that_does_not_fit_is_refused_at_use(arguments, text):
    """api.md checklist 47."""
    config = TransferWithCacheKeyConfig(*arguments)
    with pytest.raises(LLMException, match=f"transfer_cache_async failed.*{text}") as caught:
        config.ranges("transfer_cache_async")
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_configs_print_their_fields():
    """api.md checklist 61."""
    assert repr(by_addr()) == (
        "TransferConfig(dst_cluster_id=1, dst_addrs=[0x1000, 0x2000], src_layer_range=None, "
        "src_batch_index=0)"
    )
    assert len(repr(TransferConfig(1, [1] * 1000))) < 200
    assert repr(TransferWithCacheKeyConfig(BLOCKS, range(1), range(2, 3))) == (
        f"TransferWithCacheKeyConfig(cache_key={BLOCKS}, src_layer_range=range(0, 1), "
        "dst_layer_range=range(2, 3), src_batch_index=0)"
    )


def test_a_synchroniser_must_say_how_to_wait():
    """api.md checklist 48."""
    with pytest.raises(TypeError, match="abstract"):
        LayerSynchronizer()


def test_a_synchroniser_need_not_call_the_constructor_above():
    class Ready(LayerSynchronizer):
        def __init__(self, layers):
            self.layers = layers

        def synchronize_layer(self, layer_index, timeout_in_millis):
            return layer_index in self.layers

    assert Ready({3}).synchronize_layer(3, None) is True


@pytest.mark.parametrize("kind", Memtype)
@pytest.mark.parametrize("addr", [0, 1, 2**63 - 1, np.int64(3)])
@pytest.mark.parametrize("size", [-(2**70), -1, 0, 4096, 2**70, np.int32(4)])
def test_a_memory_range_takes_any_size(kind, addr, size):
    """api.md checklist 56: rejection belongs to the call."""
    info = MemInfo(kind, addr, size)
    assert (info.mem_type, info.addr, info.size) == (kind, addr, size)
    assert {type(info.addr), type(info.size)} == {int}


@pytest.mark.parametrize("addr", [-1, 2**63])
def test_an_address_outside_int64_is_a_value_error(addr):
    """api.md checklist 56."""
    with pytest.raises(ValueError, match="addr must be in"):
        MemInfo(DEVICE, addr, 1)


@pytest.mark.parametrize(
    "arguments",
    [(0, 1, 1), (None, 1, 1), *((DEVICE, bad, 1) for bad in NOT_INTS)]
    + [(DEVICE, 1, bad) for bad in NOT_INTS],
)
def test_a_memory_range_of_wrong_types_is_a_type_error(arguments):
    """api.md checklist 56."""
    with pytest.raises(TypeError):
        MemInfo(*arguments)


def test_memory_ranges_are_frozen_values():
    assert MemInfo(DEVICE, 1, 2) == MemInfo(DEVICE, 1, 2)
    assert len({MemInfo(DEVICE, 1, 2), MemInfo(DEVICE, 1, 2)}) == 1
    assert MemInfo(DEVICE, 1, 2) != MemInfo(Memtype.MEM_TYPE_HOST, 1, 2)
    assert MemInfo(DEVICE, 1, 2) != 1
    with pytest.raises(AttributeError):
        MemInfo(DEVICE, 1, 2).addr = 3
    assert repr(MemInfo(DEVICE, 4096, 2)) == (
        "MemInfo(mem_type=Memtype.MEM_TYPE_DEVICE, addr=0x1000, size=2)"
    )
