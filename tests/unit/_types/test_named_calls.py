"""Exceptions about arguments begin with the name of the public call."""

import asyncio
import enum
import inspect

import numpy as np
import pytest

import llm_datadist
from llm_datadist import aio, kv_cache_manager, layouts, leases, metrics, testing
from llm_datadist._types.checks import check_int
from llm_datadist._types.named_calls import names_call, names_calls


@names_call
def pull(count):
    return check_int("count", count)


@names_call
def outer(count):
    return pull(count)


@names_call
async def await_pull(count):
    return check_int("count", count)


class _Group:
    __module__ = "llm_datadist.made_up"  # classes of other packages are left alone

    def push(self, count):
        return check_int("count", count)


@names_calls
class Calls(_Group):
    __module__ = "llm_datadist.made_up"

    def __init__(self, size=1):
        self._size = check_int("size", size)

    @staticmethod
    def of(size):
        return check_int("size", size)

    @classmethod
    def made(cls, size):
        return cls(size)

    def _private(self, count):
        return check_int("count", count)


def text_of(call, *arguments):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("value", ["1", -1, None])
def test_a_function_names_itself(value):
    assert text_of(pull, value).startswith("pull: count must be ")
    assert pull(3) == 3


def test_the_outer_one_of_two_public_calls_is_named():
    assert text_of(outer, "1") == "outer: count must be int, got str ('1')"


def test_a_coroutine_function_stays_one():
    assert inspect.iscoroutinefunction(await_pull)
    assert asyncio.run(await_pull(3)) == 3
    with pytest.raises(TypeError, match=r"^await_pull: count must be int"):
        asyncio.run(await_pull("1"))


def test_a_class_names_its_constructor_and_public_methods():
    assert text_of(Calls, "1").startswith("Calls: size must be ")
    assert text_of(Calls().push, "1").startswith("push: count must be ")
    assert text_of(Calls.of, "1").startswith("of: size must be ")
    assert text_of(Calls.made, "1").startswith("made: size must be ")
    assert text_of(Calls()._private, "1").startswith("count must be ")


def test_the_errors_of_python_name_the_class():
    assert "Calls.push() missing" in text_of(Calls().push)
    assert text_of(Calls().push, 1, 2).startswith("Calls.push() takes ")


class OfTheProgram(TypeError):
    pass


@pytest.mark.parametrize(
    "error", [OfTheProgram("text"), TypeError("two", "values"), TypeError(), KeyError("name")]
)
def test_other_exceptions_stay_as_they_are(error):
    @names_call
    def call():
        raise error

    before = error.args
    with pytest.raises(type(error)) as caught:
        call()
    assert caught.value is error
    assert error.args == before


MODULES = [llm_datadist, kv_cache_manager, aio, layouts, metrics, testing, leases]
#: Public objects whose arguments are not checked, or which name themselves in their own texts.
EXEMPT = {
    *("BlocksCacheKey", "CacheKey", "CacheKeyByIdAndIndex", "LLMException", "Status"),
    *("LayerSynchronizer", "LeaseEnd", "MetricsServer", "RankReport"),  # never made by programs
    *("Decision", "Member", "Peer", "Snapshot", "leaks_since", "snapshot"),
}


def public_objects():
    for module in MODULES:
        for name in module.__all__:
            kind = getattr(module, name)
            if name in EXEMPT - {"Peer"} or (name == "Peer" and module is testing):
                continue
            if inspect.isfunction(kind):
                yield pytest.param(kind, id=f"{module.__name__}.{name}")
            elif inspect.isclass(kind) and not issubclass(kind, (enum.Enum, Exception, tuple)):
                for method, call in inspect.getmembers(kind, inspect.isfunction):
                    takes = len(inspect.signature(call).parameters) > 1
                    if takes and not method.startswith("_"):
                        yield pytest.param(call, id=f"{module.__name__}.{name}.{method}")


@pytest.mark.parametrize("call", list(public_objects()))
def test_every_public_call_names_itself(call):
    if getattr(call, "__isabstractmethod__", False):
        return
    assert inspect.unwrap(call) is not call, "decorate it, or its class, by names_calls"


MISTAKES = {
    "LLMDataDist": lambda: llm_datadist.LLMDataDist("prompt", 1),
    "CacheDesc": lambda: llm_datadist.CacheDesc(2, [4, 64], np.float32),
    "update_dim": lambda: llm_datadist.CacheDesc(2, [4], llm_datadist.DataType.DT_INT8).update_dim(
        "0", 1
    ),
    "CacheKey": lambda: llm_datadist.CacheKey(1, "a"),
    "LLMException": lambda: llm_datadist.LLMException(status_code="x"),
    "TransferConfig": lambda: llm_datadist.TransferConfig("2", [8]),
    "MemInfo": lambda: llm_datadist.MemInfo(1, 2, 3),
    "Node": lambda: aio.Node(1),
    "cluster_id_of": lambda: aio.cluster_id_of(1),
    "block_cache_key": lambda: aio.block_cache_key("a", 1),
    "heads_of_rank": lambda: layouts.heads_of_rank("8", 1, 1),
    "serve_metrics": lambda: metrics.serve_metrics(1, 9000),
    "Collector": lambda: metrics.Collector([1]),
    "FaultPolicy": lambda: testing.FaultPolicy(None),
    "inject_faults": lambda: testing.inject_faults(1, 2),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_types_and_functions(name):
    with pytest.raises(TypeError) as caught:
        MISTAKES[name]()
    assert name in str(caught.value)
