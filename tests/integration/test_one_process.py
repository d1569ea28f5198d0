"""Two instances of one process, whose caches can be over the same memory."""

import pytest

from llm_datadist import LayerSynchronizer, LLMStatusCode, TransferConfig
from support.instances import failing, pattern

BLOCKS = [0, 1]


class _Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


@pytest.fixture
def shifted(sides):
    """A cache of each side over one memory, the second one half a block further on."""
    user, owner = sides
    memory = pattern((6 * 128,), 1)
    near = memory[: 4 * 128].reshape(2, 2, 128)
    far = memory[64 : 64 + 4 * 128].reshape(2, 2, 128)
    source = owner.blocks(key=0, data=near, accessible=True)
    return memory, user.blocks(key=0, data=far, accessible=True), source


def test_a_pull_over_its_own_source_is_refused_and_moves_nothing(shifted, sides):
    memory, local, remote = shifted
    user, owner = sides
    before = memory.copy()
    ranges = (hex(local.data.ctypes.data), hex(remote.data.ctypes.data), "overlaps")
    with failing("LLM_PARAM_INVALID", "pull_blocks", *ranges):
        user.manager.pull_blocks(owner.blocks_key(), local.cache, BLOCKS, BLOCKS)
    assert (memory == before).all()


@pytest.mark.expects_log("overlaps the source range")
def test_a_push_over_its_own_source_is_refused_and_moves_nothing(shifted, sides):
    memory, local, remote = shifted
    user, owner = sides
    before = memory.copy()
    destination = f"destination range of 4096 bytes at {remote.data.ctypes.data:#x}"
    source = f"source range of 4096 bytes at {local.data.ctypes.data:#x}"
    with failing("LLM_PARAM_INVALID", "push_blocks", destination, source):
        user.manager.push_blocks(owner.blocks_key(), local.cache, BLOCKS, BLOCKS)
    config = TransferConfig(owner.id, [tensor.ctypes.data for tensor in remote.data])
    task = user.manager.transfer_cache_async(local.cache, _Ready(), [config], BLOCKS, BLOCKS)
    assert task.synchronize() is LLMStatusCode.LLM_PARAM_INVALID
    assert (memory == before).all()


def test_memory_onto_itself_stays_as_it_is(sides):
    user, owner = sides
    memory = pattern((2, 2, 128), 1)
    owner.blocks(key=0, data=memory)
    local = user.blocks(data=memory)
    user.manager.pull_blocks(owner.blocks_key(), local.cache, BLOCKS, BLOCKS)
    assert (memory == pattern((2, 2, 128), 1)).all()
