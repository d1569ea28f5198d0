"""Mistakes of a first program: the text says what to give instead.

`test_arguments` has the classes of errors for every argument; these are the values that a new user
gives by a likely misunderstanding.
"""

import asyncio
import inspect
import re

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    TransferConfig,
    TransferWithCacheKeyConfig,
    aio,
)
from llm_datadist._types.remedies import _REMEDIES
from llm_datadist.testing import FaultPolicy, FaultRule, PeerGroup, inject_faults
from support.first_mistake_calls import CommandFailed
from support.first_mistakes import FIRST_MISTAKES
from support.world import Ready


def configured(**options):
    config = LLMConfig()
    for name, value in options.items():
        setattr(config, name, value)
    return config


def initialized(world, options):
    LLMDataDist(LLMRole.MIX, 3).init(options)


def registered(world, name, *arguments):
    return getattr(world.manager, name)(*arguments)


DESC = CacheDesc(2, [4, 64], DataType.DT_FLOAT)
ARRAYS = [np.zeros((4, 64), np.float32) for _ in range(2)]
RULE = FaultRule("fail")
#: What the user does, the class of the error, and what its text has.
MISTAKES = {
    "a config as options": (
        lambda w: initialized(w, LLMConfig()),
        TypeError,
        ["options", "LLMConfig.generate_options()"],
    ),
    "a number as an option's value": (
        lambda w: initialized(w, {"llm.SyncKvCacheWaitTime": 1000}),
        TypeError,
        ["llm.SyncKvCacheWaitTime", 'give "1000"'],
    ),
    "a number in ge_options": (
        lambda w: configured(ge_options={"ge.flowGraphMemMaxSize": 1 << 20}),
        TypeError,
        ["ge.flowGraphMemMaxSize", 'give "1000"'],
    ),
    "a cache id as a cache": (
        lambda w: w.manager.pull_blocks(BlocksCacheKey(2), w.blocks.cache_id, [0], [1]),
        TypeError,
        ["dst_cache", "the Cache that its registration has returned"],
    ),
    "a pool as a dict": (
        lambda w: configured(mem_pool_cfg={"memory_size": 1 << 20}),
        TypeError,
        ["mem_pool_cfg", "json.dumps"],
    ),
    "a listen address as a tuple": (
        lambda w: configured(listen_ip_info=("127.0.0.1", 0)),
        TypeError,
        ["listen_ip_info", '"ip:port"'],
    ),
    "seconds as a timeout": (
        lambda w: configured(sync_kv_timeout=1.5),
        TypeError,
        ["sync_kv_timeout", "whole milliseconds"],
    ),
    "a role as text": (lambda w: LLMDataDist("prompt", 3), TypeError, ["role", "LLMRole.PROMPT"]),
    "a name as a cluster id": (
        lambda w: LLMDataDist(LLMRole.PROMPT, "prefill-0"),
        TypeError,
        ["cluster_id", "aio.cluster_id_of"],
    ),
    "a type of numpy": (
        lambda w: CacheDesc(2, [4, 64], np.float32),
        TypeError,
        ["data_type", "DataType.DT_FLOAT16"],
    ),
    "arrays as addresses": (
        lambda w: registered(w, "register_blocks_cache", DESC, ARRAYS),
        TypeError,
        ["addrs[0]", "array.ctypes.data", "register_tensors"],
    ),
    "one key as a list of keys": (
        lambda w: registered(w, "register_cache", DESC, [8, 16], CacheKey(1, 9)),
        TypeError,
        ["cache_keys", "[key]"],
    ),
    "a cache as a cache id": (
        lambda w: registered(w, "unregister_cache", w.blocks),
        TypeError,
        ["cache_id", "cache.cache_id"],
    ),
    "one array as tensors": (
        lambda w: registered(w, "register_tensors", ARRAYS[0]),
        TypeError,
        ["tensors", "[tensor]"],
    ),
    "a number as a key of tensors": (
        lambda w: registered(w, "register_tensors", ARRAYS, 1),
        TypeError,
        ["key", "BlocksCacheKey, CacheKey, or list"],
    ),
    "tensors without dimensions": (
        lambda w: registered(w, "register_tensors", [np.zeros(())]),
        LLMException,
        ["register_tensors failed", "tensors[0]", "one or more dimensions"],
    ),
    "tensors without elements": (
        lambda w: registered(w, "register_tensors", [np.zeros((0, 4))]),
        LLMException,
        ["register_tensors failed", "tensors[0]", "at least 1"],
    ),
    "too many tensors": (
        lambda w: registered(w, "register_tensors", [np.zeros((1, 4))] * 300),
        LLMException,
        ["register_tensors failed", "the limit is 240", "max_registered_addrs"],
    ),
    "a list as a range of layers": (
        lambda w: TransferWithCacheKeyConfig(BlocksCacheKey(2), [0], [0]),
        TypeError,
        ["src_layer_range", "range(first, last + 1)"],
    ),
    "one config as a list": (
        lambda w: w.manager.transfer_cache_async(w.blocks, Ready(), TransferConfig(2, [8, 16])),
        TypeError,
        ["transfer_configs", "[config]"],
    ),
    "a class as a synchronizer": (
        lambda w: w.manager.transfer_cache_async(w.blocks, Ready, [TransferConfig(2, [8, 16])]),
        TypeError,
        ["layer_synchronizer", "an object of a subclass"],
    ),
    "too many addresses of a destination": (
        lambda w: w.manager.transfer_cache_async(
            w.blocks, Ready(), [TransferConfig(2, [8, 16, 24])], [0], [0]
        ),
        LLMException,
        ["peer cluster 2", "dst_addrs has 3 entries", "give 2 per layer"],
    ),
    "a rank table as a dict": (
        lambda w: w.near.link("pair", {1: 0, 2: 1}, {"version": "1.2"}),
        TypeError,
        ["rank_table", "json.dumps"],
    ),
    "another role while links are up": (
        lambda w: w.near.switch_role(LLMRole.PROMPT),
        LLMException,
        ["switch_role failed", "cluster 2 at 127.0.0.1:", "unlink_clusters"],
    ),
    "rules instead of a policy": (
        lambda w: inject_faults(w.near, [RULE]).__enter__(),
        TypeError,
        ["policy", "FaultPolicy([rule, ...])"],
    ),
    "one rule as a list": (lambda w: FaultPolicy(RULE), TypeError, ["rules", "[rule]"]),
    "no list of rules": (lambda w: FaultPolicy(None), TypeError, ["rules", "got None"]),
    "an action as a rule": (lambda w: FaultPolicy(["fail"]), TypeError, ["rules[0]", "FaultRule"]),
    "a lambda as a body": (
        lambda w: PeerGroup("thread").start(lambda member: 1),
        ValueError,
        ["not at the top level", "defined with def"],
    ),
}


def test_there_are_many_mistakes():
    """The list of a trial with new users had 63."""
    assert len(FIRST_MISTAKES) + len(MISTAKES) + len(NODES) >= 63
    assert not FIRST_MISTAKES.keys() & (MISTAKES.keys() | NODES.keys())


@pytest.mark.expects_log(
    "secret", "closed", "first-generation", "no llm-datadist", "without authentication"
)
@pytest.mark.leaves_resources("threads of the module's instances wait for more")
@pytest.mark.parametrize("mistake", FIRST_MISTAKES)
def test_the_text_names_operation_subject_and_remedy(world, mistake):
    made = FIRST_MISTAKES[mistake]
    with pytest.raises(Exception, match=re.escape(made.operation)) as caught:
        made.do(world)
    text = str(caught.value)
    is_command = isinstance(caught.value, CommandFailed)
    assert is_command or text.startswith(made.operation), text
    assert made.subject in text, text
    assert made.remedy in text, text
    assert is_command or "\n" not in text


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_text_says_what_to_give(world, mistake):
    call, kind, words = MISTAKES[mistake]
    before = world.state()
    with pytest.raises(kind) as caught:
        call(world)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert "\n" not in text
    assert world.state() == before


def test_caches_of_unequal_tensors(world):
    """What is found only when the peer's cache is known names the peer."""
    one = world.manager.register_tensors([np.zeros((4, 64), np.float32)])
    with pytest.raises(LLMException, match=r"peer cluster 2: the source has 2 tensors") as caught:
        world.manager.pull_blocks(BlocksCacheKey(2), one, [0], [1])
    assert caught.value.cluster_id == 2
    world.manager.unregister_cache(one.cache_id)


def test_every_remedy_belongs_to_an_argument():
    arguments = {*LLMConfig._properties, "ge_options"}
    for kind in (LLMDataDist, CacheManager, CacheDesc, FaultPolicy, aio.Node):
        for _, method in inspect.getmembers(kind, inspect.isfunction):
            arguments |= set(inspect.signature(method).parameters)
    arguments |= set(inspect.signature(inject_faults).parameters)
    assert set(_REMEDIES) <= arguments


NODES = {
    "a port as the listen address": ({"listen": 26000}, TypeError, ["listen must be str"]),
    "a dict as config": ({"config": {}}, TypeError, ["config", "LLMConfig()"]),
    "every address to all": (
        {"listen": "0.0.0.0:0", "advertise": "0.0.0.0:1"},
        ValueError,
        ["advertise is '0.0.0.0:1'", "an address of this machine"],
    ),
    "a directory that cannot be reached": (
        {"keeps_directory": True},
        ValueError,
        ["keeps_directory", "give listen"],
    ),
    "a folder as directory": (
        {"listen": "127.0.0.1:0", "directory": "/"},
        IsADirectoryError,
        ["the file /", "Is a directory", "give the path of a file"],
    ),
}


@pytest.mark.parametrize("mistake", NODES)
def test_a_node(mistake):
    arguments, kind, words = NODES[mistake]
    with pytest.raises(kind) as caught:
        aio.Node("n", **arguments)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_a_peer_that_is_no_text():
    async def connect():
        async with aio.Node("n") as node:
            await node.connect(("127.0.0.1", 1))

    with pytest.raises(TypeError, match=r'give the name of a node, or its "host:port"'):
        asyncio.run(connect())


def test_a_cache_of_another_name():
    """The peer's cache has a name that no local one has."""

    async def pull():
        async with aio.Node("p", listen="127.0.0.1:0") as one, aio.Node("n") as node:
            node.register("kv", ARRAYS)
            peer = await node.connect(one.address)
            await peer.pull("theirs", [0], [1])

    with pytest.raises(KeyError, match=r"'theirs' \(there are: 'kv'\).*into \(of pull\)"):
        asyncio.run(pull())


def test_a_closed_node():
    node = aio.Node("n")
    asyncio.run(node.close())
    for call in (
        lambda: node.register("kv", ARRAYS),
        lambda: node.unregister("kv"),
        lambda: node.leased_blocks("kv"),
    ):
        with pytest.raises(RuntimeError, match="the node is closed; make another one"):
            call()
