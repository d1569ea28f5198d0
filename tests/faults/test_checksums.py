"""Bytes that change on the wire: not noticed without checksums, never success with them."""

import pytest

from llm_datadist import LLMException
from llm_datadist._protocol.codec import Kind
from support.operations import LANES
from support.proxy import Fault
from support.rig import BLOCKS, EVERY, WORDS
from support.station import OK

#: Into the payload, beyond the request or the first chunk's header; of one lane.
AFTER = 40_000
DIRECTIONS = {"pull": "down", "push": "up"}

pytestmark = pytest.mark.expects_log("lane", "connection from .* closed")


def differing(rig, operation):
    """(tensor, block) of the target that are not as at the source."""
    local, remote = rig.memory()
    return {
        (tensor, block)
        for tensor in range(local.shape[0])
        for block in range(BLOCKS)
        if (local[tensor, block] != remote[tensor, block]).any()
    }


def spoilt(rig, operation):
    """Make a call of which one byte of payload changes on its way."""
    rig.proxy.spoil(Fault("corrupt", Kind.LANE, DIRECTIONS[operation], after=AFTER, once=True))
    answer = rig.local.call(operation, 1, EVERY, EVERY)
    assert rig.proxy.hits == 1
    rig.proxy.heal()
    return answer


@pytest.mark.parametrize("operation", DIRECTIONS)
def test_without_checks_a_changed_byte_is_success(make_rig, operation):
    """TCP's own checksum does not cover what a middle box, or a bad memory, does."""
    rig = make_rig()
    assert spoilt(rig, operation).status == OK
    assert len(differing(rig, operation)) == 1


@pytest.mark.parametrize("operation", DIRECTIONS)
def test_a_changed_byte_is_found_and_its_block_named(make_rig, operation):
    rig = make_rig(checksum="crc32c")
    answer = spoilt(rig, operation)
    ((tensor, block),) = differing(rig, operation)
    assert answer.status == "LLM_FAILED", answer
    assert f"tensor {tensor}, block {block} ({WORDS * 8} bytes" in answer.text
    assert "crc32c" in answer.text
    counters = rig.local.describe(1)["counters"]
    assert counters["checksum_mismatches"] == 1
    # The lane is good: nothing but payload changed.
    assert rig.local.describe(1)["lanes"] == LANES
    assert rig.transfer_works()


def test_the_blocks_are_attributes_of_the_exception(make_rig):
    rig = make_rig(checksum="crc32c")
    rig.proxy.spoil(Fault("corrupt", Kind.LANE, "down", after=AFTER, once=True))
    with pytest.raises(LLMException) as caught:
        rig.local.pull(1, EVERY, EVERY)
    rig.proxy.heal()
    named = {(fault.tensor_index, fault.block) for fault in caught.value.faults}
    assert named == differing(rig, "pull")
    assert {fault.cluster_id for fault in caught.value.faults} == {2}
