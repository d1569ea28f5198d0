"""A decoder-only transformer of the Llama architecture, in numpy, over a paged KV cache.

RMSNorm, rotary position embeddings, grouped-query attention, SwiGLU; float32; random weights
drawn from a seed. The text that it writes is noise, but every byte of its KV cache matters to the
next token, and that is all that moving a KV cache needs to prove.

Results repeat bit for bit wherever the same calls are made with arrays of the same shape: a
request is prefilled alone, and decoding always computes the same number of rows ("slots", one per
request; idle ones are padding), so a row does not depend on what else runs at the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_datadist.cli.demo.paged_kv import BlockTable, PagedKvCache

Floats = NDArray[np.float32]

# Queries are taken this many at a time, so that scores stay small for a long prompt and the part
# of the triangle above the diagonal is mostly never computed.
_QUERY_TILE = 128
# Plain weights of 1/sqrt(fan in) attend to everything a little: greedy decoding falls into a loop
# and hardly reads the prompt. Sharper queries pick out single tokens, so the output wanders and
# depends on every block.
_QUERY_GAIN = 8.0


class ModelShape(msgspec.Struct, frozen=True):
    """Sizes of the model.

    `heads` query heads share `kv_heads` key/value heads; `hidden` is divided by `heads`.
    """

    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 2
    feed_forward: int = 1408
    vocabulary: int = 257
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights, norms included."""
        heads = self.heads + 2 * self.kv_heads
        layer = self.hidden * (heads * self.head_dim + self.hidden + 3 * self.feed_forward + 2)
        return self.layers * layer + self.hidden * (2 * self.vocabulary + 1)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values, over all layers, of one token."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4


class _Layer(NamedTuple):
    attention_norm: Floats
    qkv: Floats
    output: Floats
    feed_forward_norm: Floats
    gate_up: Floats
    down: Floats


class Llama:
    """The model: weights, prefill of one request, decode of a batch of slots."""

    def __init__(self, shape: ModelShape, seed: int) -> None:
        self.shape = shape
        draw = np.random.Generator(np.random.PCG64(seed))

        def matrix(rows: int, columns: int) -> Floats:
            weights = draw.standard_normal((rows, columns), dtype=np.float32)
            weights *= np.float32(1.0 / np.sqrt(rows))
            return weights

        def norm() -> Floats:
            weights = draw.standard_normal(shape.hidden, dtype=np.float32)
            weights *= np.float32(0.1)
            weights += np.float32(1.0)
            return weights

        def layer() -> _Layer:
            queries = shape.heads * shape.head_dim
            keys = shape.kv_heads * shape.head_dim
            qkv = matrix(shape.hidden, queries + 2 * keys)
            qkv[:, :queries] *= np.float32(_QUERY_GAIN)
            return _Layer(
                attention_norm=norm(),
                qkv=qkv,
                output=matrix(queries, shape.hidden),
                feed_forward_norm=norm(),
                gate_up=matrix(shape.hidden, 2 * shape.feed_forward),
                down=matrix(shape.feed_forward, shape.hidden),
            )

        self._embedding = draw.standard_normal((shape.vocabulary, shape.hidden), dtype=np.float32)
        self._layers = [layer() for _ in range(shape.layers)]
        self._final_norm = norm()
        self._head = matrix(shape.hidden, shape.vocabulary)

    def prefill(
        self,
        tokens: Sequence[int],
        cache: PagedKvCache,
        table: BlockTable,
        kv_ready: Callable[[int], None] | None = None,
        layer_done: Callable[[int], None] | None = None,
    ) -> Floats:
        """Run a whole prompt and return the logits after its last token.

        Args:
            tokens: The prompt, length n >= 1.
            cache: Where the keys and values go.
            table: The request's blocks, enough for n tokens.
            kv_ready: Called with each layer once its keys and values are in the cache, before its
                attention is computed.
            layer_done: Called with each layer once all of it is computed.
        """
        hidden = self._run(tokens, 0, cache, table, kv_ready, layer_done)
        logits: Floats = self._logits(hidden[-1:])[0]
        return logits

    def recompute(
        self, tokens: Sequence[int], first: int, cache: PagedKvCache, table: BlockTable
    ) -> None:
        """Recompute the keys and values of some positions of a prompt, and no others.

        Args:
            tokens: The prompt up to the last of these positions.
            first: The first of them; the cache holds the keys and values of all before it.
            cache: Where they go.
            table: The request's blocks.
        """
        self._run(tokens, first, cache, table)

    def _run(
        self,
        tokens: Sequence[int],
        first: int,
        cache: PagedKvCache,
        table: BlockTable,
        kv_ready: Callable[[int], None] | None = None,
        layer_done: Callable[[int], None] | None = None,
    ) -> Floats:
        """Run the layers on the positions from `first` on; return their last hidden states."""
        rotation = rotary_table(self.shape, np.arange(first, len(tokens)))
        hidden: Floats = self._embedding[np.asarray(tokens[first:])]
        for index, layer in enumerate(self._layers):
            queries, keys, values = self._project(layer, hidden, rotation)
            cache.write(index, table, first, keys, values)
            if kv_ready is not None:
                kv_ready(index)
            all_keys, all_values = cache.gather(index, table, len(tokens))
            attended = attention(queries, all_keys, all_values, first_position=first)
            hidden = self._finish_layer(layer, hidden, attended)
            if layer_done is not None:
                layer_done(index)
        return hidden

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        cache: PagedKvCache,
        tables: Sequence[BlockTable | None],
    ) -> Floats:
        """Run one token of every slot; return logits, one row per slot.

        Args:
            tokens: The newest token of each slot; anything for an idle slot.
            positions: Its position in its request.
            cache: Holds the keys and values of all earlier positions; the new ones are added.
            tables: Each slot's blocks, None for an idle slot (its row of the result is padding).
        """
        rotation = rotary_table(self.shape, np.asarray(positions))
        hidden = self._embedding[np.asarray(tokens)]
        for index, layer in enumerate(self._layers):
            queries, keys, values = self._project(layer, hidden, rotation)
            attended = np.zeros_like(queries)
            for slot, table in enumerate(tables):
                if table is None:
                    continue
                row = slice(slot, slot + 1)
                cache.write(index, table, positions[slot], keys[row], values[row])
                all_keys, all_values = cache.gather(index, table, positions[slot] + 1)
                attended[row] = attention(
                    queries[row], all_keys, all_values, first_position=positions[slot]
                )
            hidden = self._finish_layer(layer, hidden, attended)
        return self._logits(hidden)

    def _project(
        self, layer: _Layer, hidden: Floats, rotation: tuple[Floats, Floats]
    ) -> tuple[Floats, Floats, Floats]:
        shape = self.shape
        projected = rms_norm(hidden, layer.attention_norm, shape.norm_epsilon) @ layer.qkv
        split = projected.reshape(len(hidden), shape.heads + 2 * shape.kv_heads, shape.head_dim)
        queries = rotate(split[:, : shape.heads], rotation)
        keys = rotate(split[:, shape.heads : shape.heads + shape.kv_heads], rotation)
        return queries, keys, split[:, shape.heads + shape.kv_heads :]

    def _finish_layer(self, layer: _Layer, hidden: Floats, attended: Floats) -> Floats:
        hidden = hidden + attended.reshape(len(hidden), -1) @ layer.output
        normed = rms_norm(hidden, layer.feed_forward_norm, self.shape.norm_epsilon)
        gate, up = np.split(normed @ layer.gate_up, 2, axis=1)
        result: Floats = hidden + (silu(gate) * up) @ layer.down
        return result

    def _logits(self, hidden: Floats) -> Floats:
        logits: Floats = rms_norm(hidden, self._final_norm, self.shape.norm_epsilon) @ self._head
        return logits


def rms_norm(values: Floats, weight: Floats, epsilon: float) -> Floats:
    """Scale each row to a root mean square of one, then by `weight`."""
    mean: Floats = np.mean(np.square(values), axis=-1, keepdims=True)
    scaled: Floats = values / np.sqrt(mean + np.float32(epsilon)) * weight
    return scaled


def silu(values: Floats) -> Floats:
    """x * sigmoid(x), written so that nothing overflows."""
    half = np.float32(0.5) * values
    result: Floats = half * (np.float32(1.0) + np.tanh(half))
    return result


def rotary_table(shape: ModelShape, positions: NDArray[np.int_]) -> tuple[Floats, Floats]:
    """Cosines and sines, each of shape (positions, 1, head_dim / 2), one angle per pair."""
    exponents = np.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = np.outer(positions, shape.rope_theta**-exponents)[:, np.newaxis, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(heads: Floats, rotation: tuple[Floats, Floats]) -> Floats:
    """Rotary embedding of (tokens, heads, head_dim): dimension i is paired with i + head_dim/2."""
    cosines, sines = rotation
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate(
        (first * cosines - second * sines, second * cosines + first * sines), axis=-1
    )


def attention(queries: Floats, keys: Floats, values: Floats, first_position: int) -> Floats:
    """Causal grouped-query attention.

    Args:
        queries: (new tokens, heads, head_dim), of the positions from first_position on.
        keys: (tokens, kv_heads, head_dim), all positions from 0.
        values: As keys.
        first_position: Position of the first query; key j is seen by query i when
            j <= first_position + i.
    """
    count, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # (kv_heads, group, new tokens, head_dim) against (kv_heads, 1, tokens, head_dim)
    scaled = queries * np.float32(1.0 / np.sqrt(head_dim))
    grouped = scaled.reshape(count, kv_heads, group, head_dim).transpose(1, 2, 0, 3)
    keys = keys.transpose(1, 2, 0)[:, np.newaxis]
    values = values.transpose(1, 0, 2)[:, np.newaxis]
    result = np.empty((count, heads, head_dim), np.float32)
    for start in range(0, count, _QUERY_TILE):
        stop = min(start + _QUERY_TILE, count)
        seen = first_position + stop
        scores = grouped[:, :, start:stop] @ keys[..., :seen]
        if stop - start > 1:
            # Only the square at the right end is cut by the diagonal.
            later = np.triu(np.ones((stop - start, stop - start), dtype=np.bool_), k=1)
            scores[..., first_position + start :][..., later] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = scores @ values[:, :, :seen]
        result[start:stop] = mixed.transpose(2, 0, 1, 3).reshape(stop - start, heads, head_dim)
    return result
