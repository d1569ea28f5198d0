"""transfer_cache_async of the first generation (api.md 8)."""

import pytest

from llm_datadist import LayerSynchronizer, LLMStatusCode, TransferConfig
from support.first_generation import cleared, desc_of, filled, values
from support.instances import failing

S = LLMStatusCode


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def test_slots_to_slots(managers):
    """A prompt pushes to the addresses of the decoder's cache, over the decoder's link."""
    prompt, decoder = managers
    source = filled(prompt.allocate_cache(desc_of(tensors=4)), 10)
    target = cleared(decoder.allocate_cache(desc_of(tensors=4)))
    slot = [addr + 2 * 512 for addr in target.per_device_tensor_addrs[0]]
    config = TransferConfig(2, slot, src_batch_index=3)
    task = prompt.transfer_cache_async(source, Ready(), [config])
    assert task.synchronize(10000) is S.LLM_SUCCESS
    assert task.get_results() == [S.LLM_SUCCESS]
    assert values(target) == [0, 0, 13, 0]


def test_blocks_to_blocks(managers):
    prompt, decoder = managers
    source = filled(prompt.allocate_blocks_cache(desc_of()), 20)
    target = cleared(decoder.allocate_blocks_cache(desc_of()))
    config = TransferConfig(2, target.per_device_tensor_addrs[0])
    task = prompt.transfer_cache_async(source, Ready(), [config], [1, 3], [0, 2])
    assert task.synchronize(10000) is S.LLM_SUCCESS
    assert values(target) == [21, 0, 23, 0]


def test_no_other_combination(managers):
    prompt, decoder = managers
    slots, blocks = prompt.allocate_cache(desc_of()), prompt.allocate_blocks_cache(desc_of())
    config = TransferConfig(2, decoder.allocate_cache(desc_of()).tensor_addrs)
    with failing("LLM_PARAM_INVALID", "transfer_cache_async", "contiguous caches only"):
        prompt.transfer_cache_async(slots, Ready(), [config], None, [0])
    with failing("LLM_PARAM_INVALID", "transfer_cache_async", "from blocks to cache"):
        prompt.transfer_cache_async(blocks, Ready(), [config])


@pytest.mark.expects_log("transfer_cache_async: layer 0")
def test_a_failure_is_a_result(managers):
    prompt, _ = managers
    source = prompt.allocate_cache(desc_of())
    task = prompt.transfer_cache_async(source, Ready(), [TransferConfig(9, [4096, 8192])])
    assert task.synchronize() is S.LLM_NOT_YET_LINK
