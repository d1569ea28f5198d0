"""Transfers over a made-up link: lookups, retries, consumption, memory faults, errors."""

from types import SimpleNamespace

import pytest

from llm_datadist import CacheKey, LLMException
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.instance import Lifetime
from llm_datadist._errors import invalid
from llm_datadist._registry import CorruptDirectory, Resolved
from llm_datadist._types.refs import NO_REF
from support.attempts import (
    BLOCKS,
    FOUND,
    KEY_REF,
    LOCAL,
    OWN,
    PEER,
    REMOTE,
    REPLACED,
    TENSORS,
    UNIT,
    WAYS,
    Directory,
    Link,
    S,
    World,
    a_cache,
    a_range,
)


def test_a_known_key_needs_no_message_before_the_transfer():
    world = World(Link(Directory(known=FOUND)))
    world.run()
    (transfer,) = world.link.transfers
    assert world.link.directory.refreshed == 0
    assert (transfer.local_ref, transfer.cache_ref) == (LOCAL.ref, REMOTE.ref)
    assert transfer.version == Directory.version
    assert world.link.counted == [(TENSORS * BLOCKS * UNIT, False)]


def test_a_mapped_directory_is_read_each_time():
    world = World(Link(Directory(FOUND), published=True))
    world.run()
    assert world.link.directory.refreshed == 1


def test_a_stale_directory_is_read_and_the_transfer_repeated():
    changed = Resolved(REPLACED, 0, NO_REF)
    world = World(Link(Directory(changed, known=FOUND), Outcome(Code.STALE)))
    world.run()
    assert [transfer.cache_ref for transfer in world.link.transfers] == [REMOTE.ref, REPLACED.ref]
    assert world.link.failures == 0


@pytest.mark.parametrize("known", [invalid("x", "not accessible", "y"), None])
def test_what_an_old_directory_refuses_is_looked_up_again(known):
    """Also a cache with marks, which may have been replaced since."""
    world = World(Link(Directory(FOUND, known=known or Resolved(REPLACED, 0, NO_REF))))
    world.link.marks = (1,)
    world.marks.refused_by = [REPLACED.ref]
    world.run()
    assert [transfer.cache_ref for transfer in world.link.transfers] == [REMOTE.ref]


def test_a_refusal_by_a_fresh_directory_is_final():
    refusal = invalid("x", "not accessible", "y")
    world = World(Link(Directory(known=refusal)))
    assert world.fails(S.LLM_PARAM_INVALID) is refusal
    assert world.link.directory.refreshed == 1
    assert world.link.transfers == []


def test_a_corrupt_directory_is_a_failure():
    world = World(Link(Directory(known=CorruptDirectory("odd"))))
    world.fails(S.LLM_FAILED, "directory cannot be read: odd", "peer cluster 2")


def test_a_cache_that_is_gone_is_a_failure_unless_another_has_its_key():
    world = World(Link(Directory(known=FOUND), Outcome(Code.GONE)))
    world.fails(S.LLM_KV_CACHE_NOT_EXIST, "cache 7 of the peer")
    world = World(Link(Directory(Resolved(REPLACED, 0, NO_REF), known=FOUND), Outcome(Code.GONE)))
    world.run()
    assert world.link.counted


def test_a_link_that_has_ended_is_named_instead_of_the_cache():
    world = World(Link(Directory(known=FOUND), Outcome(Code.GONE)))
    world.link.is_open = False
    world.fails(S.LLM_LINK_FAILED, "192.0.2.1")
    assert world.link.directory.refreshed == 0


def test_a_success_that_moved_less_is_none():
    world = World(Link(Directory(known=FOUND), Outcome(Code.OK, moved_bytes=1)))
    world.fails(S.LLM_FAILED, "PROTOCOL", "1 of 512 bytes")


def test_an_instance_that_is_closing_says_so():
    world = World(Link(Directory(known=FOUND), Outcome(Code.CLOSED)), Lifetime(closing=True))
    world.fails(S.LLM_ENGINE_FINALIZED, "finalized")


@pytest.mark.parametrize(
    ("layers", "key_ref", "consumed"),
    [
        ((None, None, 2), KEY_REF, [KEY_REF]),
        ((range(1), range(1), 2), KEY_REF, [KEY_REF]),
        ((range(1), range(1), 1), KEY_REF, []),
        ((None, None, 2), NO_REF, []),
        (None, KEY_REF, []),
    ],
)
def test_a_pull_of_all_layers_consumes_the_key(layers, key_ref, consumed):
    world = World(Link(Directory(known=Resolved(REMOTE, 0, key_ref))))
    world.run(CacheKey(PEER, 1), layers=layers)
    assert world.link.consumed == consumed


def test_a_failed_pull_consumes_nothing_and_a_second_puller_fails():
    pulled = Resolved(REMOTE, 0, KEY_REF)
    world = World(Link(Directory(known=pulled), Outcome(Code.TIMEOUT)))
    world.fails(S.LLM_TIMEOUT, "1000 ms", layers=(None, None, 2))
    assert world.link.consumed == []
    world = World(Link(Directory(known=pulled)))
    world.link.consume_outcome = Outcome(Code.GONE)
    world.fails(S.LLM_KV_CACHE_NOT_EXIST, layers=(None, None, 2))


def test_memory_at_fault_is_marked_and_the_rest_is_moved():
    bad = [a_range(LOCAL, 0, 1), a_range(REMOTE, 1, 2)]
    world = World(Link(Directory(known=FOUND), bad=bad))
    error = world.fails(S.LLM_DEVICE_MEM_ERROR)
    named = [(f.cluster_id, f.cache_id, f.tensor_index, f.block) for f in error.faults]
    assert named == [(OWN, 1, 0, 1), (PEER, 7, 1, 2)]
    assert world.marks.marked == [error.faults[0]]
    assert world.marks.reported == [(REMOTE.ref, error.faults[1])]
    parts = [transfer for transfer in world.link.transfers if transfer.version == 0]
    assert len(parts) == len(world.link.transfers) - 1


def test_a_fault_that_is_no_more_repeats_the_transfer():
    world = World(Link(Directory(known=FOUND), Outcome(Code.REMOTE_FAULT, 14, 0)))
    world.run()
    assert world.marks.reported == []
    assert world.link.counted == [(TENSORS * BLOCKS * UNIT, False)]


def test_a_peer_that_dies_during_containment_ends_it():
    outcomes = Outcome(Code.REMOTE_FAULT, 14, 0), Outcome(Code.PEER_DEAD)
    world = World(Link(Directory(known=FOUND), *outcomes))
    world.fails(S.LLM_LINK_FAILED)


def test_a_push_to_bare_addresses_looks_nothing_up():
    world = World(Link(Directory(), bad=[(0x900000, 1)]))
    with pytest.raises(LLMException) as raised:
        world.push_raw()
    assert raised.value.status_code is S.LLM_SUSPECT_REMOTE_ERROR
    assert [(fault.cluster_id, fault.addr) for fault in raised.value.faults] == [(PEER, 0x900000)]
    world.link.bad = ()
    world.push_raw()
    assert world.link.counted == [(TENSORS * BLOCKS * UNIT, True)]


@pytest.mark.parametrize("way", WAYS)
def test_local_memory_known_to_be_at_fault_is_not_touched(way):
    local = SimpleNamespace(**vars(LOCAL) | {"faulted": (a_range(LOCAL, 0, 1),)})
    world = World(Link(Directory(known=FOUND)), local=local)
    with pytest.raises(LLMException) as raised:
        WAYS[way](world)
    assert raised.value.status_code is S.LLM_DEVICE_MEM_ERROR
    assert world.link.transfers == []


@pytest.mark.parametrize("write", [False, True])
def test_memory_that_the_peer_has_marked_is_not_touched(write):
    world = World(Link(Directory(FOUND, known=FOUND)))
    world.link.marks = (1,)
    world.marks.refused_by = [REMOTE.ref]
    world.fails(S.LLM_SUSPECT_REMOTE_ERROR, write=write)
    assert world.link.transfers == []


def test_a_transfer_on_condition_of_a_version_follows_no_older_record():
    directory = Directory(known=FOUND)
    resolve = directory.resolve

    def publish_and_resolve(*arguments, **more):
        directory.version += 1  # by another call
        return resolve(*arguments, **more)

    directory.resolve = publish_and_resolve
    world = World(Link(directory))
    world.run()
    assert world.link.transfers[0].version == Directory.version


@pytest.mark.parametrize("code", [Code.LOCAL_FAULT, Code.REMOTE_FAULT])
@pytest.mark.parametrize("end", [Code.GONE, Code.STALE])
def test_a_fault_in_a_cache_that_has_changed_meanwhile_marks_nothing(code, end):
    fault = Outcome(code, 14, 0)
    outcomes = fault, fault, fault, Outcome(end)  # the descriptor, its halves, a block
    world = World(Link(Directory(known=FOUND), *outcomes, Outcome(Code.GONE)))
    error = world.fails(S.LLM_KV_CACHE_NOT_EXIST)
    assert (world.marks.marked, world.marks.reported, error.faults) == ([], [], ())


def test_marks_and_notices_name_the_generation_that_the_transfer_has_used():
    """A remap during the transfer changes the records of both caches in place."""
    local, remote = (SimpleNamespace(**vars(cache)) for cache in (LOCAL, REMOTE))
    bad = [a_range(local, 0, 1), a_range(remote, 1, 2)]
    world = World(Link(Directory(known=Resolved(remote, 0, NO_REF)), bad=bad), local=local)
    run = world.link.run

    def run_and_remap(transfer):
        local.ref, remote.ref = (3, 33), (5, 53)
        return run(transfer)

    world.link.run = run_and_remap
    world.fails(S.LLM_DEVICE_MEM_ERROR)
    assert world.marks.of_entry == [LOCAL.ref]
    assert [entry for entry, _ in world.marks.reported] == [REMOTE.ref]


@pytest.mark.parametrize("write", [False, True])
def test_within_a_process_nothing_is_copied_onto_a_part_of_itself(write):
    shifted = a_cache(7, int(LOCAL.layout.starts[0]) + UNIT // 2, (5, 51))
    world = World(Link(Directory(known=Resolved(shifted, 0, NO_REF))))
    world.link.in_process = True
    world.fails(S.LLM_PARAM_INVALID, "overlaps the source", write=write)
    assert world.link.transfers == []
