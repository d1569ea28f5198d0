"""An instance with a cache, in GPU or host memory, that does what it reads from its input."""

import json
import sys

from support.gpu import Gpu, load
from support.gpu_caches import SHAPE, cache_on
from support.instances import Side, pattern


class Owner:
    """Its commands are its methods."""

    def __init__(self, backend):
        self.gpu = Gpu(load())
        self.side = Side(1, backend, device="cuda")
        self.cache = None

    def register(self, where, seed):
        self.cache = cache_on(where, self.side, self.gpu, seed=seed, key=0)
        return self.cache.cache.cache_id

    def unregister(self):
        self.side.manager.unregister_cache(self.cache.cache.cache_id)
        self.side.held.clear()

    def clean(self):
        """Unregister and free, so that the driver gives the same addresses again."""
        self.side.clean()
        self.gpu.close()

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
