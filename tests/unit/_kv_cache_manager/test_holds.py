"""The hold of an id ends with the program's last reference (api.md 8, checklist 62)."""

import gc
import types

import pytest

from llm_datadist import Cache, CacheDesc, DataType
from llm_datadist._kv_cache_manager import holds
from llm_datadist._kv_cache_manager.holds import Holds

DESC = CacheDesc(2, [4, 8], DataType.DT_FLOAT)


class Engine:
    """Notes what is deallocated, and what is left to a worker."""

    def __init__(self):
        self.registry = self.links = self
        self.closed = False
        self.deallocated = []
        self.left = []

    def check_open(self, operation):
        if self.closed:
            raise RuntimeError("not initialized")

    def deallocate(self, operation, cache):
        assert operation == "deallocate_cache"
        self.deallocated.append(cache.cache_id)

    def call_later(self, seconds, call):
        self.left.append(call)


@pytest.fixture
def engine():
    return Engine()


def cache(cache_id=1):
    return Cache(cache_id, DESC, (4096, 8192), is_blocks_cache=True, owner=DESC)


def in_module(name, call):
    """Call from a function that is one of that module's, as far as its frame tells."""
    code = "def run():\n    call()\n"
    names = {"call": call, "__name__": name}
    exec(code, names)
    names["run"]()


def test_the_programs_object_is_another_of_the_same_cache(engine):
    made = cache()
    given = Holds(engine).give_out(made)
    assert given is not made
    for name in ("cache_id", "cache_desc", "tensor_addrs", "is_blocks_cache", "owner"):
        assert getattr(given, name) == getattr(made, name)


def test_the_last_reference_counts(engine):
    given_out = Holds(engine)
    given = given_out.give_out(cache())
    same = given
    del given
    assert engine.deallocated == []
    del same
    assert engine.deallocated == [1]


def in_library(call):
    in_module("llm_datadist._registry.caches", call)


@pytest.mark.parametrize("module", ["llm_datadist._registry.caches", "logging", "logging.handlers"])
def test_where_locks_may_be_held_a_worker_ends_the_hold(engine, module):
    given_out = Holds(engine)
    kept = [given_out.give_out(cache())]
    in_module(module, kept.clear)
    assert engine.deallocated == []
    (call,) = engine.left
    call()
    assert engine.deallocated == [1]


def test_cycles_end_with_the_garbage_collector(engine):
    given_out = Holds(engine)
    holder = types.SimpleNamespace(cache=given_out.give_out(cache(7)))
    holder.self = holder
    del holder
    in_library(gc.collect)
    assert len(engine.left) == 1
    engine.left[0]()
    assert engine.deallocated == [7]


def test_after_finalize_nothing_is_done(engine):
    """Nor in a forked child, whose caches are the parent's."""
    given_out = Holds(engine)
    kept = [given_out.give_out(cache(number)) for number in (1, 2)]
    engine.closed = True
    del kept[0]
    del given_out
    kept.clear()
    assert engine.deallocated == []


def test_nothing_is_done_at_exit(engine):
    """finalize ends every cache; and modules may be gone then."""
    given_out = Holds(engine)
    kept = given_out.give_out(cache())
    (finalizer,) = [each for each in holds.weakref.finalize._registry if each.peek()[0] is kept]
    assert finalizer.atexit is False
