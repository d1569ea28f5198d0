"""An instance with a cache, in GPU or host memory, that does what it reads from its input."""

import json
import sys
from pathlib import Path

from llm_datadist import MemInfo, Memtype
from support.fake_cuda import FakeCuda
from support.gpu import STAND_IN, Gpu, VirtualGpu, load
from support.gpu_caches import EVERY, POOL, SHAPE, Pooled, cache_on
from support.instances import Side, pattern


class Owner:
    """Its commands are its methods."""

    def __init__(self, backend):
        driver = load()
        self.gpus = {
            "gpu": Gpu(driver),
            "virtual": VirtualGpu(driver),
            "unshareable": VirtualGpu(driver, exportable=False),
        }
        self.side = Side(1, backend, device="cuda", mem_pool_cfg=POOL)
        self.cache = None

    def register(self, where, seed):
        kind = "host" if where == "host" else "gpu"
        self.cache = cache_on(kind, self.side, self.gpus.get(where), seed=seed, key=0)
        return self.cache.cache.cache_id

    def unregister(self):
        self.side.manager.unregister_cache(self.cache.cache.cache_id)
        self.side.held.clear()

    def allocate(self, seed):
        self.cache = Pooled(self.side, self.gpus["gpu"], seed, key=0)

    def deallocate(self):
        self.side.manager.deallocate_blocks_cache(self.cache.cache)

    def remap_another(self, seed):
        """Remap a cache of the same pool; return whether it is new, and the first one as it was."""
        other = Pooled(self.side, self.gpus["gpu"], seed=9)
        self._remap(other.cache.tensor_addrs, SHAPE[1] * SHAPE[2] * 8)
        found = [bool((other.data != pattern(SHAPE, 9)).any()), self.holds(seed, EVERY)]
        self.side.manager.deallocate_blocks_cache(other.cache)
        return found

    def clean(self):
        """End the cache and free, so that the driver gives the same addresses again."""
        self.side.clean()
        if isinstance(self.cache, Pooled):
            self.deallocate()
        self.cache = None
        for gpu in self.gpus.values():
            gpu.close()

    def replace(self, seed):
        """Put other memory and bytes behind the addresses of the cache, and remap it."""
        for address in self.cache.addresses:
            self.gpus["virtual"].replace(address)
        self.cache.data = pattern(SHAPE, seed)
        self._remap(self.cache.addresses, self.cache.tensor_bytes)

    def _remap(self, addresses, size):
        device = Memtype.MEM_TYPE_DEVICE
        infos = [MemInfo(device, each, size) for each in addresses]
        self.side.manager.remap_registered_memory(infos)

    def descriptors(self):
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def deny_ipc(self, side):
        """Let the stand-in refuse to make or open handles in this process."""
        FakeCuda(STAND_IN).deny_ipc(side)

    def fail(self, text):
        """Let functions of the stand-in fail in this process; "" ends it."""
        FakeCuda(STAND_IN).fail(text)

    def holds(self, seed, order):
        return bool((self.cache.data == pattern(SHAPE, seed)[:, order]).all())

    def holds_at(self, seed, order):
        return bool((self.cache.data[:, order] == pattern(SHAPE, seed)).all())


def main():
    owner = Owner(sys.argv[1])
    print(json.dumps(owner.side.address), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(owner, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
