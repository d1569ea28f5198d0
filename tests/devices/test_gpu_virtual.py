"""Virtual memory of a GPU (PyTorch's expandable segments) between two processes of one host."""

import pytest

from support.gpu import VirtualGpu
from support.gpu_caches import EVERY, ORDER, SHAPE, OnGpu, cache_on
from support.instances import failing, pattern
from support.owner_process import KEY, device_facts

pytestmark = pytest.mark.gpu
MAPPINGS = 2 * 3  # of two tensors, each over three allocations of 2 MiB


@pytest.fixture
def virtual(driver, gpu):
    one = VirtualGpu(driver)
    yield one
    one.close()


@pytest.mark.parametrize("local", ["gpu", "host"])
def test_pull(owner, user, gpu, local):
    """Blocks that lie in two allocations included."""
    owner.ask("register", "virtual", 3)
    target = cache_on(local, user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()
    assert device_facts(user)["mapped_allocations"] == MAPPINGS


def test_pull_into_it(owner, user, virtual):
    owner.ask("register", "virtual", 3)
    target = OnGpu(user, virtual)
    user.manager.pull_blocks(KEY, target.cache, ORDER, EVERY)
    assert (target.data == pattern(SHAPE, 3)[:, ORDER]).all()


@pytest.mark.parametrize("remote", ["virtual", "gpu", "host"])
def test_push_from_it(owner, user, virtual, remote):
    owner.ask("register", remote, 3)
    source = OnGpu(user, virtual, seed=4)
    user.manager.push_blocks(KEY, source.cache, ORDER, EVERY)
    assert owner.ask("holds", 4, ORDER)


def test_unregister_ends_mappings_and_descriptors(owner, user, gpu, stand_in):
    before = stand_in.num_virtual()
    owner.ask("register", "virtual", 3)
    exported = owner.ask("descriptors")
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert stand_in.num_virtual() == before + 2 * MAPPINGS  # addresses, and memory behind them
    owner.ask("unregister")
    assert stand_in.num_virtual() == before
    # The memory of the test takes one each as well, and stays.
    assert exported - owner.ask("descriptors") == MAPPINGS
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)


def test_memory_that_was_replaced_under_a_registered_cache(owner, user, gpu):
    """New memory at the same addresses: no reader sees the old one after the remap."""
    owner.ask("register", "virtual", 3)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    owner.ask("replace", 7)
    assert device_facts(user)["mapped_allocations"] == 0
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 7)).all()


def test_a_remap_publishes_what_the_one_before_could_not(owner, user, gpu, stand_in):
    owner.ask("register", "virtual", 3)
    owner.ask("fail", "cuMemExportToShareableHandle:*:2")
    owner.ask("replace", 5)
    owner.ask("fail", "")
    owner.ask("replace", 6)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 6)).all()
    assert device_facts(user)["mapped_allocations"] == MAPPINGS


def test_a_reader_maps_it_for_reading_only(owner, user, gpu, stand_in):
    """No mistake of a reader can write a peer's memory: its driver would refuse."""
    owner.ask("register", "virtual", 3)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert stand_in.num_writable_imports() == 0


def test_a_driver_without_read_only_mappings(owner, user, gpu, stand_in):
    owner.ask("register", "virtual", 3)
    target = OnGpu(user, gpu)
    stand_in.fail("cuMemSetAccess:1:801")
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)
    assert (target.data == pattern(SHAPE, 3)).all()


@pytest.mark.expects_log("over the lanes, as .*PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False")
def test_memory_without_descriptors_goes_over_lanes(owner, user, gpu):
    """The log names the setting that helps."""
    owner.ask("register", "unshareable", 3)
    target = OnGpu(user, gpu)
    user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    assert (target.data[:, ORDER] == pattern(SHAPE, 3)).all()
    assert device_facts(user)["over_lanes"] == 1


@pytest.mark.expects_log("over the lanes, as .*cuMem.*OUT_OF_MEMORY")
@pytest.mark.parametrize(
    "function", ["cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap"]
)
def test_a_driver_that_refuses_leaves_nothing(owner, user, gpu, stand_in, function):
    owner.ask("register", "virtual", 3)
    target = OnGpu(user, gpu)
    before = stand_in.num_virtual()
    stand_in.fail(f"{function}:*:2")
    user.manager.pull_blocks(KEY, target.cache, EVERY, ORDER)
    assert function in device_facts(user)["trouble"]
    assert stand_in.num_virtual() == before
    stand_in.reset()
    user.manager.pull_blocks(KEY, target.cache, EVERY, EVERY)  # the link is good
    assert (target.data == pattern(SHAPE, 3)).all()


def test_a_registration_that_runs_out_of_descriptors(gpu, user, virtual, stand_in):
    before = stand_in.num_virtual()
    stand_in.fail("cuMemExportToShareableHandle:4:304")
    with failing("LLM_FAILED", "register_blocks_cache", "ulimit -n"):
        OnGpu(user, virtual)
    stand_in.fail("")
    assert stand_in.num_virtual() == before + 2 + MAPPINGS  # the test's own memory
    OnGpu(user, virtual)
