"""Layouts of a worker's KV memory, and those that the workers of an unequal engine must have.

With them, producers and consumers of unequal parallel or block sizes transfer. They are known for
attention backends whose blocks are understood, as far as needed to divide them: which bytes belong
to a KV head, and for some, which bytes belong to a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_datadist import LLMException
from llm_datadist.integrations.vllm.stages import ONE_STAGE, Stage, numbered_layers
from llm_datadist.layouts import KvLayout, dense, heads_of_rank, of_vllm_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part

MAX_RANKS = 4096

_PACKING = {"CPU_ATTN"}
"""Backends that keep K, then V of a head together, tokens in an order that `isa` names."""

_LATENT = {"CPU_MLA", "AMX_MLA"}
"""Backends whose blocks are rows: a latent vector for each token."""

_PACKED_AXES = ("block", "head", "plane", "token", "element")
_LATENT_AXES = ("block", "token", "element")
_PLAIN = {
    "kv_quant_mode": 0,
    "num_head_slots": None,
    "state_content_bytes": None,
    "tokens_per_state": 1,
    "page_size_padded": None,
}
"""Attributes of a KV cache spec that change what a block holds, and their usual values."""

_PLAIN_TYPES = {"auto", "float32", "float16", "bfloat16"}
"""Types of a KV cache that needs no scales, which workers would have to share."""


class Indivisible(Exception):
    """KV memory that cannot be transferred to or from an unequal engine; the text says why."""


def peers_of(tp_size: int, rank: int, peer_tp_size: int) -> range:
    """Return the tensor-parallel ranks of another engine with which a worker transfers.

    Of unequal tensor-parallel sizes the larger is a multiple of the smaller. The ranks of the
    larger engine are divided evenly, in order, among those of the smaller. So are the KV heads of
    both, so that the peers of a worker hold all of its heads. Every worker has a peer, even if
    others hold the same heads, because vLLM waits for all of them.

    Args:
        tp_size: Tensor-parallel ranks of the worker's engine.
        rank: The worker's.
        peer_tp_size: Tensor-parallel ranks of the other engine.

    Raises:
        Indivisible: Neither size is a multiple of the other, or the other is no size.
    """
    smaller, larger = sorted((tp_size, peer_tp_size))
    if smaller < 1 or larger > MAX_RANKS or larger % smaller:
        raise Indivisible(
            f"tensor parallel sizes {tp_size} and {peer_tp_size}: one must be a multiple of the "
            f"other, and neither above {MAX_RANKS}"
        )
    if peer_tp_size >= tp_size:
        each = peer_tp_size // tp_size
        return range(rank * each, (rank + 1) * each)
    peer = rank // (tp_size // peer_tp_size)
    return range(peer, peer + 1)


@dataclass(frozen=True, slots=True)
class RankLayouts:
    """Layouts of the parts of one worker's KV memory, or why they are not known.

    Attributes:
        parts: Layout of each part, in the order of `KVLayout.parts`; empty if they are not known.
        groups: KV cache group of each part.
        tp_size: Tensor-parallel ranks of the engine.
        rank: The worker's tensor-parallel rank.
        block_sizes: Tokens of a block, by KV cache group.
        backends: Attention backends, with the order in which they pack tokens.
        problem: Why the layouts are not known; "" if they are.
        stage: Pipeline stage of the worker.
    """

    parts: tuple[KvLayout, ...]
    groups: tuple[int, ...]
    tp_size: int
    rank: int
    block_sizes: tuple[int, ...]
    backends: str
    problem: str
    stage: Stage = ONE_STAGE

    def describe(self) -> str:
        """Describe what is the same for all parallel and block sizes."""
        return self.problem or "; ".join(
            f"group {group}: {part.kv_heads} KV heads of {part.head_size} {part.data_type.name}, "
            f"{part.planes} planes, {part.packing or 'rows'}"
            for group, part in zip(self.groups, self.parts, strict=True)
        )

    def repeated(self, rank: int) -> set[int]:
        """Return the parts of which another rank of this stage holds what this worker holds.

        Raises:
            Indivisible: The layouts are not known.
        """
        if self.problem:
            raise Indivisible(self.problem)
        return {
            index
            for index, part in enumerate(self.parts)
            if _heads(part, self.tp_size, rank) == part.heads
        }

    def check_rows(self, block_size: int) -> None:
        """Check that tokens can be moved one by one, to or from blocks of this size.

        Raises:
            Indivisible: They cannot; the text names both sizes.
        """
        for part in self.parts:
            if problem := _packing_problem(part, block_size):
                raise Indivisible(f"block sizes {part.block_tokens} and {block_size}: {problem}")

    def of_rank(
        self,
        tp_size: int,
        rank: int,
        block_sizes: Sequence[int],
        layers: range | None = None,
    ) -> tuple[KvLayout, ...]:
        """Return the layouts of the parts of a worker of an engine with the same model.

        Args:
            tp_size: Tensor-parallel ranks of that engine.
            rank: The worker's, below `tp_size`.
            block_sizes: Tokens of a block, by KV cache group, as many as this engine has.
            layers: Layers that it holds; None = those of this worker.

        Raises:
            Indivisible: There are none that fit these; the text names the values of both engines.
        """
        both = (
            f"the producer has {_sizes(tp_size, block_sizes)}, the consumer "
            f"{_sizes(self.tp_size, self.block_sizes)}"
        )
        if self.problem:
            raise Indivisible(f"{both}: {self.problem}; run both with the same")
        layouts = []
        for group, part in zip(self.groups, self.parts, strict=True):
            block_size = block_sizes[group]
            if problem := _packing_problem(part, block_size):
                raise Indivisible(f"{both}: {problem}")
            try:
                layouts.append(_of_rank(part, tp_size, rank, block_size, layers or part.layers))
            except LLMException as error:
                raise Indivisible(f"{both}: {error}") from None
        return tuple(layouts)


def rank_layouts_of(
    memory: KVLayout, kv_caches: dict[str, Any], kv_cache_config: Any, vllm_config: Any
) -> RankLayouts:
    """Derive the layouts of a worker's parts; if they are not understood, `problem` says why.

    Args:
        memory: The worker's KV memory.
        kv_caches: Layer name -> tensor, as vLLM registers them.
        kv_cache_config: vLLM's KVCacheConfig.
        vllm_config: vLLM's configuration, with the attention layers.
    """
    context = getattr(
        getattr(vllm_config, "compilation_config", None), "static_forward_context", {}
    )
    backends = {
        name: _backend_of(context.get(name)) for part in memory.parts for name in part.layers
    }
    worker = _Worker(memory, kv_caches, kv_cache_config, vllm_config, backends)
    parts: tuple[KvLayout, ...] = ()
    problem = ""
    try:
        parts = tuple(worker.layout_of(part) for part in memory.parts)
    except (Indivisible, LLMException, AttributeError, TypeError, ValueError) as error:
        problem = f"the layout of the KV cache is not known ({error})"
    return RankLayouts(
        parts=parts,
        groups=tuple(part.group for part in memory.parts),
        tp_size=worker.tp_size,
        rank=worker.rank,
        block_sizes=memory.block_sizes,
        backends=", ".join(sorted({each.strip() for each in map(" ".join, backends.values())})),
        problem=problem,
        stage=worker.stage,
    )


class _Worker:
    """What the layouts of one worker are derived from.

    Args:
        memory, kv_caches, kv_cache_config, vllm_config: See `rank_layouts_of`.
        backends: Layer name -> attention backend, and the order in which it packs tokens.
    """

    def __init__(
        self,
        memory: KVLayout,
        kv_caches: dict[str, Any],
        kv_cache_config: Any,
        vllm_config: Any,
        backends: dict[str, tuple[str, str]],
    ) -> None:
        self._kv_caches = kv_caches
        self._groups = kv_cache_config.kv_cache_groups
        self._model = vllm_config.model_config
        self._cache_dtype = str(vllm_config.cache_config.cache_dtype)
        self._backends = backends
        parallel = vllm_config.parallel_config
        self.tp_size = int(parallel.tensor_parallel_size)
        stage, self.rank = divmod(memory.rank, self.tp_size)
        num_stages = int(getattr(parallel, "pipeline_parallel_size", 1))
        self.stage = Stage(stage, num_stages, _layers_of(memory))

    def layout_of(self, part: Part) -> KvLayout:
        """Return the layout of a part.

        Raises:
            Indivisible, LLMException, AttributeError, TypeError, ValueError: It is not understood.
        """
        group_spec = self._groups[part.group].kv_cache_spec
        specs = getattr(group_spec, "kv_cache_specs", {})
        layouts = set()
        for layer in part.layers:
            spec = specs.get(layer, group_spec)
            layout = self._layout(layer, spec, int(group_spec.block_size), len(part.addrs))
            _check_tensor(layer, self._kv_caches[layer], part, layout)
            layouts.add(layout)
        if len(layouts) != 1:
            raise Indivisible(f"layers of {part.block_bytes} bytes a block have unequal KV heads")
        return layouts.pop()

    def _layout(self, layer: str, spec: Any, block_size: int, num_tensors: int) -> KvLayout:
        backend, packing = self._backends[layer]
        odd = [name for name, usual in _PLAIN.items() if getattr(spec, name, usual) != usual]
        if self._cache_dtype not in _PLAIN_TYPES:
            raise Indivisible(f"the KV cache dtype is {self._cache_dtype}")
        if odd:
            raise Indivisible(f"{layer} has {odd[0]} {getattr(spec, odd[0])}")
        is_latent = backend in _LATENT
        if not is_latent and not (backend in _PACKING and packing):
            raise Indivisible(f"{layer} has the attention backend {backend or 'unknown'} {packing}")
        layout = of_vllm_spec(
            spec,
            layers=self.stage.layers or range(num_tensors),
            tp_size=self.tp_size,
            tp_rank=self.rank,
            kv_heads=None if is_latent else int(self._model.get_total_num_kv_heads()),
            axes=_LATENT_AXES if is_latent else _PACKED_AXES,
            packing="" if is_latent else f"{backend} {packing}",
        )
        if layout.is_latent != is_latent or (is_latent and layout.kv_heads != 1):
            raise Indivisible(f"{layer} is a {type(spec).__name__} of the backend {backend}")
        if layout.block_tokens != block_size:
            raise Indivisible(
                f"{layer} has block size {layout.block_tokens}, its group {block_size}"
            )
        return layout


def _layers_of(memory: KVLayout) -> range | None:
    """Return the layers of a worker; None unless each tensor is that of one layer, in order."""
    if any(len(part.layers) != len(part.addrs) for part in memory.parts):
        return None
    return numbered_layers(part.layers for part in memory.parts)


def _backend_of(layer: Any) -> tuple[str, str]:
    """Return the attention backend of a layer, and the order in which it packs tokens."""
    backend = getattr(layer, "attn_backend", None)
    return ("" if backend is None else str(backend.get_name())), str(getattr(layer, "isa", ""))


def _check_tensor(layer: str, tensor: Any, part: Part, layout: KvLayout) -> None:
    """Refuse a tensor that is not a plain run of blocks as the layout says."""
    heads, tokens = len(layout.heads), layout.block_tokens
    width = layout.planes * layout.head_size
    shape = [size for size in tensor.shape if size != 1]
    wanted = [size for size in (part.num_blocks, heads, tokens, width) if size != 1]
    dense_stride, is_dense = 1, True
    for size, stride in reversed(list(zip(tensor.shape, tensor.stride(), strict=True))):
        is_dense &= size == 1 or stride == dense_stride
        dense_stride *= size
    if (
        shape != wanted
        or not is_dense
        or tensor.element_size() != layout.data_type.itemsize
        or layout.strides.block != part.block_bytes
    ):
        raise Indivisible(
            f"{layer} has shape {tuple(tensor.shape)} and strides {tuple(tensor.stride())}, not "
            f"{wanted} without gaps"
        )


def _of_rank(part: KvLayout, tp_size: int, rank: int, block_size: int, layers: range) -> KvLayout:
    return dense(
        _LATENT_AXES if part.is_latent else tuple(axis for axis in _PACKED_AXES if axis != "token"),
        layers=layers,
        kv_heads=part.kv_heads,
        heads=_heads(part, tp_size, rank),
        head_size=part.head_size,
        data_type=part.data_type,
        block_tokens=block_size,
        planes=part.planes,
        interior=part.interior,
        packing=part.packing,
    )


def _packing_problem(part: KvLayout, block_size: int) -> str:
    """Return why tokens cannot move to or from blocks of this size one by one, or ""."""
    if not part.packing or block_size == part.block_tokens:
        return ""
    return (
        f"{part.packing} packs the tokens of a block of {part.block_tokens} in an order of its "
        "own; run both with the same --block-size"
    )


def _heads(part: KvLayout, tp_size: int, rank: int) -> range:
    """Return the heads of a rank; each holds the whole latent."""
    return part.heads if part.is_latent else heads_of_rank(part.kv_heads, tp_size, rank)


def _sizes(tp_size: int, block_sizes: Sequence[int]) -> str:
    return f"tensor parallel size {tp_size} and block size {', '.join(map(str, block_sizes))}"
