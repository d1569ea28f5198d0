"""Two network namespaces joined by an emulated network with delay, loss and a limited rate."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.veth import Namespaces, ip

_MTU = 9000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_QUEUED_S = 0.05
"""What waits longer for its turn at the limited rate is dropped, as a full router does."""
_BURST = 64
"""Packets that are read before due ones are written."""


@dataclass(frozen=True)
class Network:
    """What the network does to packets.

    Attributes:
        rtt_ms: Round trip.
        loss_percent: Packets that are lost, in each direction.
        gbit_s: Limit of each direction; 0 for none.
    """

    rtt_ms: float = 0.0
    loss_percent: float = 0.0
    gbit_s: float = 0.0


class Wan(Namespaces):
    """Two network namespaces and a process that carries packets between them, until `close`.

    Needs root, iproute2 and /dev/net/tun. The process moves about 2 Gbit/s on a free core.
    """

    def __init__(self, network: Network) -> None:
        self._carrier: subprocess.Popen[bytes] | None = None
        self._network = network
        super().__init__()

    def join(self, names: list[str]) -> None:
        for name in names:
            ip("-n", name, "tuntap", "add", "dev", "eth0", "mode", "tun")
            ip("-n", name, "link", "set", "eth0", "mtu", str(_MTU), "txqueuelen", "10000")
        values = [str(value) for value in asdict(self._network).values()]
        self._carrier = subprocess.Popen(
            [sys.executable, "-m", "bench.wan", *names, *values], stdout=subprocess.PIPE
        )
        if self._carrier.stdout is None or not self._carrier.stdout.readline():
            raise RuntimeError("the process that carries packets did not start")

    def close(self) -> None:
        """End the process, and remove the namespaces and their devices."""
        if self._carrier is not None:
            self._carrier.kill()
            self._carrier.wait()
            if self._carrier.stdout is not None:
                self._carrier.stdout.close()
        super().close()


class _Direction:
    """Packets on their way from one device to the other."""

    def __init__(self, src: int, dst: int, network: Network) -> None:
        self.src, self._dst = src, dst
        self._delay_s = network.rtt_ms / 2000
        self._loss = network.loss_percent / 100
        self._s_per_byte = 8 / (network.gbit_s * 1e9) if network.gbit_s else 0.0
        self._free_at = 0.0
        self._queue: deque[tuple[float, bytes]] = deque()

    def receive(self, now: float) -> None:
        """Take what has arrived."""
        for _ in range(_BURST):
            try:
                packet = os.read(self.src, _MTU + 64)
            except BlockingIOError:
                return
            begin = max(now, self._free_at)
            if begin - now > _QUEUED_S or random.random() < self._loss:
                continue
            self._free_at = begin + len(packet) * self._s_per_byte
            self._queue.append((self._free_at + self._delay_s, packet))

    def deliver(self, now: float) -> float:
        """Write what is due; return the time until the next one is, at most one second."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            try:
                os.write(self._dst, queue[0][1])
            except BlockingIOError:
                return 0.0005
            except OSError:  # the device is not up yet
                pass
            queue.popleft()
        return queue[0][0] - now if queue else 1.0


def _open_tun(namespace: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as place:
        if libc.setns(place.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TUN | _IFF_NO_PI))
    return fd


def _carry(names: list[str], network: Network) -> None:
    one, other = (_open_tun(name) for name in names)
    directions = (_Direction(one, other, network), _Direction(other, one, network))
    print("ready", flush=True)
    wait = 1.0
    while True:
        select.select([one, other], [], [], max(0.0, wait))
        now = time.monotonic()
        for each in directions:
            each.receive(now)
        now = time.monotonic()
        wait = min(each.deliver(now) for each in directions)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _carry(sys.argv[1:3], Network(*map(float, sys.argv[3:])))
