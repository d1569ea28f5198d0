"""A worker's instance whose library calls are written down, for tests of one role alone."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from types import SimpleNamespace

import msgspec

try:
    from opentelemetry import trace
except ImportError:
    trace = None

from llm_datadist import DataType, LLMException
from llm_datadist.integrations.vllm.kv_layout import KVLayout, Part
from llm_datadist.integrations.vllm.options import parse_extra_config
from llm_datadist.integrations.vllm.rank_layouts import RankLayouts
from llm_datadist.integrations.vllm.stages import ONE_STAGE
from llm_datadist.integrations.vllm.worker import mailbox
from llm_datadist.integrations.vllm.worker.reports import Reports
from llm_datadist.layouts import dense, heads_of_rank

PEER = 7
TRACE_HEADERS = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736 if trace else None
LAYOUT = KVLayout(
    parts=(Part(0, (1, 2), 100, 64, ("a", "b")), Part(0, (3,), 100, 32, ("c",))),
    block_sizes=(4,),
    groups="FullAttentionSpec",
    rank=0,
)
UNKNOWN = RankLayouts((), (0, 0), 1, 0, LAYOUT.block_sizes, "", "what blocks hold is not known")


def packed_layouts(*, kv_heads=2, tp_size=1, rank=0, stage=ONE_STAGE):
    """Layouts of the parts of LAYOUT, as if they held these heads of CPU attention."""
    first = stage.layers.start if stage.layers else 0
    heads = heads_of_rank(kv_heads, tp_size, rank)
    parts = tuple(
        dense(
            ("block", "head", "plane", "element"), layers=range(first, first + len(part.addrs)),
            kv_heads=kv_heads, heads=heads, head_size=part.block_bytes // (8 * len(heads)),
            data_type=DataType.DT_UINT8, block_tokens=4, interior="opaque heads",
            packing="CPU_ATTN vec",
        )
        for part in LAYOUT.parts
    )  # fmt: skip
    sizes = tp_size, rank, LAYOUT.block_sizes
    return RankLayouts(parts, (0, 0), *sizes, "CPU_ATTN vec", "", stage)


class FakeWorker:
    """See the module. `events` has what happened in its order; `failing` what is to fail next.

    Attributes:
        messages: Sent to mailboxes of peers, as (key, fields).
        traces: (request id, trace id) of each push and pull.
        pushes, pulls: (key, part, source blocks, destination blocks, layers).
        offsets: (source, destination) of pushes between unequal layouts.
        failing: Name of a call -> statuses (None: it succeeds) of its next calls.
    """

    cluster_id = 1

    def __init__(self, **options):
        self.options = parse_extra_config(options)
        self.layout, self.rank_layouts, self.facts = LAYOUT, UNKNOWN, {}
        self.local_caches = [SimpleNamespace(part=part) for part in range(2)]
        self.events, self.messages, self.pushes, self.pulls = [], [], [], []
        self.traces, self.offsets = [], []
        self.failing = {}
        self.reports = _WrittenReports(self.events)
        self.cache_manager = self.instance = self
        self._ids = itertools.count(1)
        self._mailboxes = {}

    def _call(self, name):
        statuses = self.failing.get(name)
        status = statuses.pop(0) if statuses else None
        if isinstance(status, Exception):
            raise status
        if status is not None:
            raise LLMException(f"{name} fails", status_code=status)

    # ---- the worker

    def path_to(self, cluster_id):
        return f"path{cluster_id}"

    def publish(self, key):
        self._call("publish")
        self.events.append(("published", key))
        return [SimpleNamespace(cache_id=key)]

    def withdraw(self, caches):
        self._call("withdraw")
        self.events.append(("withdrawn", caches[0].cache_id))

    # ---- its cache manager

    def register_blocks_cache(self, desc, addrs, key=None, remote_accessible=None):
        cache = SimpleNamespace(cache_id=next(self._ids), addr=addrs[0])
        if key is not None:
            self._mailboxes[key.model_id] = addrs[0]
        return cache

    def unregister_cache(self, cache_id):
        pass

    def push_blocks(self, key, cache, src_blocks, dst_blocks, **more):
        is_message = hasattr(cache, "addr")
        self._call("message" if is_message else "push")
        if is_message:
            self.messages.append((key.model_id, _message_at(cache.addr)))
            self.events.append(("message", key.model_id))
            return
        self._trace(more.pop("request_id"))
        self.pushes.append((key.model_id, cache.part, src_blocks, dst_blocks, *more.values()))
        self.events.append(("pushed", cache.part))

    def push_resharded(
        self, keys, cache, src_blocks, dst_blocks, num_tokens, *, src_offset, dst_offset, layers,
        request_id,
    ):  # fmt: skip
        self._call("push")
        self._trace(request_id)
        (key,) = keys
        self.pushes.append((key.model_id, cache.part, src_blocks, dst_blocks, num_tokens, layers))
        self.offsets.append((src_offset, dst_offset))
        self.events.append(("pushed", cache.part))

    def pull_blocks(self, key, cache, src_blocks, dst_blocks, *, request_id):
        self._call("pull")
        self._trace(request_id)
        self.pulls.append((key.model_id, cache.part, src_blocks, dst_blocks))
        self.events.append(("pulled", cache.part))

    def pull_resharded(self, keys, cache, src_blocks, dst_blocks, num_tokens, **more):
        self._call("pull")
        self._trace(more.pop("request_id"))
        clusters = [key.cluster_id for key in keys]
        self.pulls.append((clusters, cache.part, src_blocks, dst_blocks, num_tokens, more))
        self.events.append(("pulled", cache.part))

    def _trace(self, request_id):
        context = trace.get_current_span().get_span_context() if trace else None
        self.traces.append((request_id, context and context.trace_id))

    @contextlib.contextmanager
    def lease(self, key, blocks, ttl_ms):
        self._call("lease")
        self.events.append(("leased", key.model_id))
        try:
            yield SimpleNamespace(renew=lambda: self.events.append(("renewed", key.model_id)))
        finally:
            self.events.append(("released", key.model_id))

    # ---- its instance

    def describe_link(self, cluster_id):
        self._call("describe_link")

    # ---- the peer

    def deliver(self, key, message):
        """Let a message of the peer arrive in the mailbox of that key."""
        page = mailbox._page_of(message)
        ctypes.memmove(self._mailboxes[key], page.ctypes.data, page.nbytes)

    def what(self):
        """Names of the events."""
        return [event[0] for event in self.events]


class FakeLinks:
    """Links to producers, which are up unless `failing` says otherwise."""

    def __init__(self, worker):
        self._worker = worker

    def link(self, rank, expected=None):
        self._worker._call("link")
        self._worker.events.append(("linked", rank.cluster_id))

    def drop(self, rank):
        self._worker.events.append(("dropped", rank.cluster_id))

    def mark_silent(self, rank, reason):
        self._worker.events.append(("silent", rank.cluster_id))


class ConsumerSide:
    """A consumer of a fake worker.

    Args:
        failing: See FakeWorker.
        options: Of the worker.
    """

    role = None  # the consumer's class

    def __init__(self, failing=(), **options):
        self.worker = FakeWorker(**options)
        self.worker.failing = dict(failing)
        self.events, self.what = self.worker.events, self.worker.what
        self.consumer = self.role(self.worker, self.worker.reports)
        self.consumer._links = FakeLinks(self.worker)

    def close(self):
        self.consumer.close()


class _WrittenReports(Reports):
    def __init__(self, events):
        super().__init__()
        self._events = events

    def add_sent(self, request_id):
        self._events.append(("sent", request_id))

    def add_loaded(self, request_id, failed_blocks):
        self._events.append(("loaded", request_id, set(failed_blocks)))


def _message_at(address):
    size, _ = mailbox._HEADER.unpack(ctypes.string_at(address, mailbox._HEADER.size))
    return msgspec.json.decode(ctypes.string_at(address + mailbox._HEADER.size, size))
