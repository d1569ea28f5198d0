"""One process of a run: an instance, its actors, a watchdog; at the end it looks for leaks."""

import faulthandler
import gc
import json
import logging
import os
import random
import threading
import traceback
from pathlib import Path

import numpy as np

from chaos.caches import cluster_id
from chaos.journal import Journal
from chaos.ledger import Ledger
from chaos.linker import Linker
from chaos.owner import Owner
from chaos.reader import Reader
from chaos.work import TIMEOUT_S, Work
from chaos.writer import Writer
from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
)
from llm_datadist.testing import leaks_since, snapshot
from support.setup import info_of, started

_TICK_S = 0.5
_HANG_TICKS = 30
_END_S = 20.0
_POOL = json.dumps({"memory_size": 48 << 20})


def run(member, directory, slot, life, options):
    """Body of the process: act until the ledger says stop."""
    directory = Path(directory)
    logging.basicConfig(filename=directory / f"log-{slot}-{life}.txt", level=logging.WARNING)
    ledger = Ledger(directory / "ledger")
    logging.getLogger("llm_datadist").addHandler(_GivenUp(ledger, slot))
    journal = Journal(
        directory / f"journal-{slot}-{life}.jsonl", slot, life, trace=options["trace"]
    )
    _warm_up()
    before = snapshot()
    try:
        _act(ledger, journal, directory, slot, life, options)
    except BaseException:
        journal.violation("crash", text=traceback.format_exc())
        raise
    gc.collect()
    for leak in leaks_since(before, 5.0):
        if not _is_foreign(leak):
            journal.violation("leak", text=leak)
    journal.beat(**_holdings())
    return journal.violations


class _GivenUp(logging.Handler):
    """Tells the ledger of links that this process ends by itself, as the API wants, when it does.

    A remap ends the link of a peer that has not answered in time, which on a busy machine may be
    one to which nothing has happened.
    """

    def __init__(self, ledger, slot):
        super().__init__(logging.WARNING)
        self._ledger = ledger
        self._slot = slot

    def emit(self, record):
        if "loses its link" in record.getMessage():
            self._ledger.gave_up[self._slot] += np.uint64(1)


def _act(ledger, journal, directory, slot, life, options):
    plan = f"{options['seed']} {slot} {life}"
    chance = random.Random(f"{plan} instance")
    raw = chance.random() < 0.5
    instance = _instance(slot, chance, options["backend"], raw=raw)
    work_options = {**options, "directory": directory, "raw": raw}
    work = Work(instance, ledger, journal, slot, plan, work_options)
    actors = [
        Owner(work),
        Reader(work, "reader 1"),
        Reader(work, "reader 2"),
        Writer(work),
        Linker(work, unlinks=options["unlinks"]),
    ]
    threads = [
        threading.Thread(target=_run_actor, args=(actor, work), name=actor.name, daemon=True)
        for actor in actors
    ]
    ledger.pid[slot] = os.getpid()
    ledger.port[slot] = instance.listen_address[1]
    for thread in threads:
        thread.start()
    _watch(work, ledger, journal, directory)
    work.over.set()
    for thread in threads:
        thread.join(_END_S)
        if thread.is_alive():
            _report_hang(work, directory, thread.name)
    work.call("main", "finalize", 2.0, instance.finalize)
    work.manager = work.instance = None


def _instance(slot, chance, backend, *, raw):
    return started(
        cluster_id(slot),
        sync_kv_timeout=int(TIMEOUT_S * 1000),
        transfer_backend=chance.choice(["auto", "tcp"]) if backend == "mix" else backend,
        enable_remote_cache_accessible=not raw,
        mem_pool_cfg=_POOL,
    )


def _run_actor(actor, work):
    try:
        actor.run()
    except BaseException:
        if not work.stopped:
            work.journal.violation("crash", actor=actor.name, text=traceback.format_exc())


def _watch(work, ledger, journal, directory):
    """Count the ticks of this process; a call that lasts many of them hangs."""
    reported = set()
    while not ledger.stopped:
        work.over.wait(_TICK_S)
        work.ticks += 1
        if work.ticks % 2 == 0:
            journal.beat(**_holdings())
        for actor, (operation, since) in list(work.calling.items()):
            if work.ticks - since > _HANG_TICKS and (actor, since) not in reported:
                reported.add((actor, since))
                _report_hang(work, directory, actor, operation)


def _report_hang(work, directory, actor, operation=None):
    path = directory / f"hang-{work.slot}-{os.getpid()}.txt"
    with path.open("a") as file:
        faulthandler.dump_traceback(file)
    work.journal.violation("hang", actor=actor, call=operation, stacks=str(path))


def _holdings():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "fds": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
    }


def _is_foreign(leak):
    """Whether a line of `leaks_since` is about the machine's or the native core's own things.

    Every process sees all of /dev/shm. The core keeps its threads for all instances to come.
    """
    if not leak.startswith("thread "):
        return leak.startswith("shared memory ")
    thread_id = int(leak.split()[1].rstrip(":"))
    return thread_id not in {thread.native_id for thread in threading.enumerate()}


def _warm_up():
    """Start what a process keeps from its first use on, and import what is imported late."""
    chance = random.Random(0)
    sides = [_instance(slot, chance, "auto", raw=False) for slot in (20, 21)]
    data = np.zeros((2, 2, 8), np.uint64)
    desc = CacheDesc(2, [2, 8], DataType.DT_UINT64)
    addrs = [tensor.ctypes.data for tensor in data]
    key = BlocksCacheKey(cluster_id(20))
    sides[0].cache_manager.register_blocks_cache(desc, addrs, key)
    cache = sides[1].cache_manager.register_blocks_cache(desc, addrs)
    sides[1].link_clusters([info_of(sides[0])], 10000)
    sides[1].cache_manager.pull_blocks(key, cache, [0], [1])
    sides[1].cache_manager.push_blocks(key, cache, [0], [1])
    for side in sides:
        side.finalize()
