"""A link per module and backend, whose caches end with each test."""

import re

import pytest

from llm_datadist import LayerSynchronizer, MemInfo, Memtype, TransferConfig
from support.instances import BACKENDS, LASTING, finalize, linked_sides
from support.nixl_backends import NEEDS_NIXL

_POOL = 16 << 20
_OVER_NIXL = {"test_pull", "test_push", "test_faults", "test_remap", "test_races"}


def pytest_generate_tests(metafunc):
    """Run the tests of a link over every backend; over NIXL those of transfers."""
    if "backend" not in metafunc.fixturenames or _names_its_backends(metafunc):
        return
    over_nixl = metafunc.module.__name__.rpartition(".")[2] in _OVER_NIXL
    more = [pytest.param("nixl", marks=NEEDS_NIXL)] if over_nixl else []
    metafunc.parametrize("backend", [*BACKENDS, *more], indirect=True, scope="module")


def _names_its_backends(metafunc):
    """Whether a mark of the test, or a fixture of its module, names its backends."""
    if getattr(metafunc.module, "backend", None) is not None:
        return True
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0]
        if "backend" in (re.split(r",\s*", names) if isinstance(names, str) else names):
            return True
    return False


@pytest.fixture(scope="module")
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def linked(backend):
    """Two sides, clusters 1 and 2, linked for the whole module."""
    options = dict(LASTING)
    with pytest.MonkeyPatch.context() as patch:
        if backend == "nixl":  # small transfers as well, whose slowness costs time
            patch.setattr("llm_datadist._backends.nixl.backend.SMALL_BYTES", 0)
            options["sync_kv_timeout"] = 20_000
        sides = linked_sides(backend, pool=_POOL, **options)
    warm_up(*sides)
    yield sides
    finalize(*sides)


@pytest.fixture
def sides(linked):
    """The module's two sides; caches that the test registers with them end with the test."""
    yield linked
    for side in linked:
        side.clean()


class _Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def warm_up(member, remote):
    """Start threads that start with the first use, so that no test seems to leak them."""
    big = {"tensors": 2, "units": 64, "words": 8192}
    source, target = member.blocks(key=0, **big), remote.blocks(key=0, **big)
    every = list(range(64))
    member.manager.push_blocks(remote.blocks_key(), source.cache, every, every)
    member.manager.pull_blocks(remote.blocks_key(), source.cache, every, every)
    remote.manager.pull_blocks(member.blocks_key(), target.cache, every, every)
    for side, held, other in ((member, source, target), (remote, target, source)):
        own = MemInfo(Memtype.MEM_TYPE_DEVICE, held.data.ctypes.data, 1)
        side.manager.remap_registered_memory(own)
        addrs = [tensor.ctypes.data for tensor in other.data]
        config = TransferConfig(other.side.id, addrs)
        side.manager.transfer_cache_async(
            held.cache, _Ready(), [config] * 2, [0], [0]
        ).synchronize()
    member.clean()
    remote.clean()
