"""Blocks moved both ways between this process and another one: path, rates, every byte checked."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_datadist import BlocksCacheKey, LLMException
from llm_datadist.cli.doctor.finding import ok, problem, split_remedy, warning
from llm_datadist.cli.instances import new_instance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_datadist import Cache, LLMDataDist
    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["transfers"]

_SUBJECT = "two processes"
_BLOCKS = 1024
_BLOCK_BYTES = 64 << 10
_LOCAL, _PEER = 1, 2
_SECONDS = 30.0
_SEE_LOGS = "see the other findings, and the error"
_ENDED = "a second process could not start an instance"


def transfers() -> Iterator[Finding]:
    """Move blocks between this process and another one on this machine."""
    try:
        with _peer_address() as address, new_instance(timeout_s=_SECONDS) as instance:
            yield from _moved(instance, address)
    except (LLMException, OSError) as error:
        seen, remedy = split_remedy(str(error), _SEE_LOGS)
        yield problem(_SUBJECT, f"blocks do not move: {seen}", remedy)


@contextmanager
def _peer_address() -> Iterator[str]:
    """Run a process with an instance; give its address. OSError when it cannot start."""
    with subprocess.Popen(
        [sys.executable, "-m", "llm_datadist.cli.doctor.transfers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                lines = process.stderr.read().strip().splitlines()
                raise OSError(f"{_ENDED} ({lines[-1]})" if lines else _ENDED)
            yield address
        finally:
            process.stdin.close()  # the process then ends
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _moved(instance: LLMDataDist, address: str) -> Iterator[Finding]:
    memory, cache = _blocks(instance, _LOCAL)
    peer = instance.link_peer(address, timeout=round(_SECONDS * 1000))
    link: dict[str, Any] = instance.describe_link(peer)
    key, manager = BlocksCacheKey(peer), instance.cache_manager
    order = np.random.default_rng(0).permutation(_BLOCKS).tolist()
    manager.pull_blocks(key, cache, order, order)  # warm
    if not (memory == _PEER).all():
        seen = f"pulled bytes differ from the peer's, over {link['backend']['host']}"
        yield problem(_SUBJECT, seen, "do not use this machine, and report this with the output")
        return
    pulled_s = _seconds(lambda: manager.pull_blocks(key, cache, order, order))
    pushed_s = _seconds(lambda: manager.push_blocks(key, cache, order, order))
    one_s = min(_seconds(lambda: manager.pull_blocks(key, cache, [0], [0])) for _ in range(50))
    rates = (
        f"pull {memory.nbytes / pulled_s / 1e9:.1f} and push {memory.nbytes / pushed_s / 1e9:.1f} "
        f"GB/s in blocks of 64 KiB, one block in {one_s * 1e6:.0f} us"
    )
    yield _judged(link["backend"]["host"], link["why"], rates)


def _judged(path: str, why: dict[str, str], rates: str) -> Finding:
    """Judge the path that two processes of this machine have."""
    seen = f"blocks move over {path}: {rates}"
    if path == "host":
        return ok(_SUBJECT, seen)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items())
    return warning(
        _SUBJECT,
        f"{seen}, because the same-host path is not available ({reasons})",
        "see the finding about same-host reads; TCP works, and is slower",
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _blocks(
    instance: LLMDataDist, value: int
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], Cache]:
    """Register blocks in which every byte is `value`."""
    memory = np.full((_BLOCKS, _BLOCK_BYTES), value, np.uint8)
    key = BlocksCacheKey(instance.cluster_id)
    return memory, instance.cache_manager.register_tensors([memory], key, remote_accessible=True)


def main() -> None:
    """Serve as the peer until standard input ends."""
    with new_instance(timeout_s=_SECONDS, listen="127.0.0.1:0") as instance:
        memory, _ = _blocks(instance, _PEER)
        address = instance.listen_address
        assert address is not None
        sys.stdout.write(f"{address[0]}:{address[1]}\n")
        sys.stdout.flush()
        sys.stdin.read()
        del memory


if __name__ == "__main__":
    main()
