"""Blocks caches with a layout over numpy arrays, whose contents are tokens."""

from __future__ import annotations

import numpy as np

from llm_datadist import CacheDesc, DataType
from llm_datadist.layouts import dense, heads_of_rank

LAYERS, HEADS, HEAD_SIZE, NUM_BLOCKS = 3, 4, 8, 12
ORDERS = {"NHD": (0, 1, 2, 3, 4, 5), "HND": (0, 1, 2, 4, 3, 5)}


def tokens_of_model(count, seed=1):
    """All KV of `count` tokens: (layer, plane, token, head, element), different everywhere."""
    shape = (LAYERS, 2, count, HEADS, HEAD_SIZE)
    values = np.random.default_rng(seed).permutation(np.prod(shape))
    return values.astype(np.uint32).reshape(shape) + np.uint32(1)


class KvCache:
    """A registered cache of one rank.

    Attributes:
        cache: The Cache.
        rows: Its memory as (layer, plane, block, token, head, element), in whatever order it lies.
    """

    def __init__(
        self, side, axes="NHD", *, tp=1, rank=0, block_tokens=4, layers=range(LAYERS), key=0,
        data=None, accessible=True, described=True,
    ):  # fmt: skip
        self.layout = dense(
            axes, layers=layers, kv_heads=HEADS, heads=heads_of_rank(HEADS, tp, rank),
            head_size=HEAD_SIZE, data_type=DataType.DT_UINT32, block_tokens=block_tokens,
        )  # fmt: skip
        held = len(self.layout.heads)
        inside = (block_tokens, held) if axes == "NHD" else (held, block_tokens)
        shape = (len(layers), 2, NUM_BLOCKS, *inside, HEAD_SIZE)
        memory = np.zeros(shape, np.uint32) if data is None else data.view(np.uint32)
        self.rows = memory.reshape(shape).transpose(ORDERS[axes])
        self.tensors = memory.reshape(-1, NUM_BLOCKS, *inside, HEAD_SIZE)
        desc = CacheDesc(len(self.tensors), list(self.tensors.shape[1:]), DataType.DT_UINT32)
        self.cache = side.manager.register_blocks_cache(
            desc,
            [tensor.ctypes.data for tensor in self.tensors],
            None if key is None else side.blocks_key(key),
            accessible,
            layout=self.layout if described else None,
        )
        side.held.append(self)

    @property
    def id(self):
        return self.cache.cache_id

    def put(self, model, blocks, offset=0):
        """Write this rank's part of a model's tokens into blocks, from a token of them on."""
        for token in range(model.shape[2]):
            self._at(blocks, offset + token)[:] = self.part(model)[:, :, token]

    def tokens(self, blocks, count, offset=0):
        """Read `count` tokens: (layer, plane, token, head, element)."""
        places = range(offset, offset + count)
        return np.stack([self._at(blocks, place) for place in places], axis=2)

    def part(self, model):
        """This rank's layers and heads of a model's tokens."""
        layers, heads = self.layout.layers, self.layout.heads
        return model[layers.start : layers.stop, :, :, heads.start : heads.stop]

    def _at(self, blocks, token):
        place, in_block = divmod(token, self.layout.block_tokens)
        return self.rows[:, :, blocks[place], in_block]
