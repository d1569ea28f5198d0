"""An instance with a cache, in GPU or host memory, that does what it reads from its input."""

import json
import sys
from pathlib import Path

from llm_datadist import MemInfo, Memtype
from support.gpu import Gpu, VirtualGpu, load
from support.gpu_caches import SHAPE, cache_on
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
        self.side = Side(1, backend, device="cuda")
        self.cache = None

    def register(self, where, seed):
        kind = "host" if where == "host" else "gpu"
        self.cache = cache_on(kind, self.side, self.gpus.get(where), seed=seed, key=0)
        return self.cache.cache.cache_id

    def unregister(self):
        self.side.manager.unregister_cache(self.cache.cache.cache_id)
        self.side.held.clear()

    def clean(self):
        """Unregister and free, so that the driver gives the same addresses again."""
        self.side.clean()
        for gpu in self.gpus.values():
            gpu.close()

    def replace(self, seed):
        """Put other memory and bytes behind the addresses of the cache, and remap it."""
        for address in self.cache.addresses:
            self.gpus["virtual"].replace(address)
        self.cache.data = pattern(SHAPE, seed)
        sizes = [(address, self.cache.tensor_bytes) for address in self.cache.addresses]
        device = Memtype.MEM_TYPE_DEVICE
        self.side.manager.remap_registered_memory([MemInfo(device, *each) for each in sizes])

    def descriptors(self):
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def holds(self, seed, order):
        return bool((self.cache.data == pattern(SHAPE, seed)[:, order]).all())


def main():
    owner = Owner(sys.argv[1])
    print(json.dumps(owner.side.address), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(owner, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
