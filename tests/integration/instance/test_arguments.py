"""Every method with every kind of mistake (api.md 1.1): the class of error, its text, no effect."""

import inspect
import re

import numpy as np
import pytest

from llm_datadist import (
    CacheManager,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)
from support.mistakes import MISTAKES, A, T, V
from support.world import World

METHODS = [
    (kind, name)
    for kind in (LLMDataDist, CacheManager)
    for name, _ in inspect.getmembers(kind, inspect.isfunction)
    if not name.startswith("_")
]
KEEPS_WORKERS = pytest.mark.leaves_resources("threads of the module's instances wait for more")


def arguments_of(kind, name):
    return list(inspect.signature(getattr(kind, name)).parameters)[1:]


def test_the_table_has_every_argument_of_every_method():
    """api.md checklist 5."""
    documented = {name: set(arguments_of(kind, name)) for kind, name in METHODS}
    assert {name: set(table) for name, table in MISTAKES.items()} == {
        name: names for name, names in documented.items() if names
    }


ROWS = [
    pytest.param(name, argument, mistakes, id=f"{name}-{argument}")
    for name, table in MISTAKES.items()
    for argument, mistakes in table.items()
]


@pytest.mark.parametrize(("name", "argument", "mistakes"), ROWS)
def test_mistakes(world, name, argument, mistakes):
    """api.md checklist 5."""
    before = world.state()
    call = LLMDataDist(LLMRole.MIX, 3).init if name == "init" else world.method(name)
    for raised, value in mistakes:
        with pytest.raises((T, V, A, LLMException)) as caught:
            call(**world.good[name] | {argument: value})
        found = f"{argument}={value!r} raised {caught.value!r}"
        if isinstance(raised, LLMStatusCode):
            assert type(caught.value) is LLMException, found
            assert caught.value.status_code is raised, found
            assert caught.value.operation == name, found
            assert re.match(rf"{name} failed \[{raised.name}\].*: .+; .+", str(caught.value)), found
        else:
            assert type(caught.value) is raised, found
            assert argument in str(caught.value), found
            assert str(caught.value).startswith(f"{name}: "), found
        assert world.state() == before, found


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_unknown_and_missing_arguments(world, kind, name):
    """api.md checklist 5."""
    method = world.method(name)
    with pytest.raises(TypeError, match=rf"\b{kind.__name__}\.{name}\(\)"):
        method(**world.good[name], no_such_argument=1)
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.default is inspect.Parameter.empty for parameter in parameters):
        with pytest.raises(TypeError, match=rf"\b{kind.__name__}\.{name}\(\)"):
            method()


INTEGERS = [
    ("check_link_status", "remote_cluster_id", 2),
    ("pull_cache", "batch_index", 1),
    ("pull_cache", "size", 8),
    ("pull_cache", "tensor_num_per_layer", 2),
    ("pull_blocks", "src_blocks", [0, 1]),
    ("push_cache", "src_batch_index", 1),
    ("copy_cache", "offset", 0),
    ("unregister_cache", "cache_id", 998),
    ("link_clusters", "timeout", 3000),
]


@KEEPS_WORKERS
@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.int32])
@pytest.mark.parametrize(("name", "argument", "value"), INTEGERS)
def test_anything_with_index_is_an_integer(world, name, argument, value, kind):
    """api.md checklist 5."""
    given = [kind(one) for one in value] if isinstance(value, list) else kind(value)
    world.method(name)(**world.good[name] | {argument: given})


OTHER_STATE = {
    *("init", "finalize", "unlink_clusters", "switch_role"),
    *("link", "unlink", "query_register_mem_status", "describe_domain"),
    *("deallocate_cache", "deallocate_blocks_cache"),
}


@KEEPS_WORKERS
def test_the_good_arguments_are_good(options, info):
    """api.md checklist 5. The mistakes above are the only thing wrong with their calls."""
    world = World(options, info)
    try:
        world.near.unlink_clusters(**world.good["unlink_clusters"])
        world.near.switch_role(**world.good["switch_role"])
        world.near.link_clusters(**world.good["link_clusters"])
        for name, arguments in world.good.items():
            if name not in OTHER_STATE:
                world.method(name)(**arguments)
    finally:
        world.close()


def documentation(kind, name):
    """The docstring of a method, with that of the method that it refers to for its errors."""
    text = inspect.getdoc(getattr(kind, name))
    for other in re.findall(r"\bas (?:for )?`(\w+)`", text):
        text += documentation(kind, other)
    return text


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_docstring_names_every_class_of_error_and_its_source(kind, name):
    """api.md checklist 5. What the table above makes a method raise, its docstring tells."""
    text = documentation(kind, name)
    for what in {what for mistakes in MISTAKES.get(name, {}).values() for what, _ in mistakes}:
        assert (what.name if isinstance(what, LLMStatusCode) else what.__name__) in text
    assert "Source: " in text


PROPERTIES = ["cache_manager", "kv_cache_manager", "listen_address"]


AFTER_INIT = [(kind, name) for kind, name in METHODS if name not in {"init", "finalize"}]


def check_refused(call, name, arguments):
    with pytest.raises(RuntimeError, match="not initialized") as caught:
        call(**arguments)
    assert type(caught.value) is RuntimeError
    assert name in str(caught.value)


@pytest.mark.parametrize("name", [name for kind, name in AFTER_INIT if kind is LLMDataDist])
def test_a_method_of_an_instance_never_initialized(world, name):
    """api.md checklist 6."""
    check_refused(getattr(LLMDataDist(LLMRole.MIX, 4), name), name, world.good[name])


@pytest.mark.leaves_resources("the old cache manager keeps its memory as long as it is held")
def test_methods_of_a_finalized_instance(world, options):
    """api.md checklist 6. Of the cache manager, too, and after the next init."""
    one = LLMDataDist(LLMRole.MIX, 4)
    one.init(options())
    manager = one.cache_manager
    one.finalize()
    for kind, name in AFTER_INIT:
        check_refused(
            getattr(one if kind is LLMDataDist else manager, name), name, world.good[name]
        )
    with one:
        one.init(options())
        for kind, name in AFTER_INIT:
            if kind is CacheManager:
                check_refused(getattr(manager, name), name, world.good[name])


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_of_an_instance_that_is_not_initialized(options, name):
    """api.md checklist 6."""
    one = LLMDataDist(LLMRole.MIX, 4)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not initialized") as caught:
            getattr(one, name)
        assert type(caught.value) is RuntimeError
        one.init(options())
        one.finalize()
