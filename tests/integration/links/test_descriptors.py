"""A process that runs out of descriptors says so, and goes on when there are some again."""

import contextlib
import logging
import os
import resource
import socket
import time

import pytest

from llm_datadist.testing import PeerGroup
from support.setup import info_of, started

LIMIT = 96


def serve(near):
    """Body of another process: an instance with few descriptors that executes commands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("llm_datadist")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    instance = started(9)
    near.send(list(instance.listen_address))
    with contextlib.ExitStack() as files:
        while (command := near.receive(60))[0] != "stop":
            if command[0] == "wait":  # return the CPU time spent meanwhile, and all that was logged
                before = time.process_time()
                time.sleep(command[1])
                near.send([time.process_time() - before, *lines])
            elif command[0] == "fill":
                with contextlib.suppress(OSError):
                    while True:
                        files.callback(os.close, os.dup(0))
                near.send("done")
            elif command[0] == "empty":
                files.close()
                near.send("done")
            elif command[0] == "link":
                lines.clear()
                info = info_of(command[1])
                near.send([instance.link_clusters([info], 2000)[0].name, *lines])
    instance.finalize()


@pytest.fixture
def poor():
    """A process with few descriptors: (ask, its address)."""
    with PeerGroup() as group:
        peer = group.start(serve)

        def ask(*command):
            peer.send(list(command))
            return peer.receive()

        yield ask, tuple(peer.receive())
        peer.send(["stop"])
        peer.wait()


def link_to(instance, address):
    return instance.link_clusters([info_of(address)], 5000)[0].name


@pytest.fixture
def instance():
    with started(1) as made:
        yield made


def test_a_listener_without_descriptors_waits_and_recovers(poor, instance):
    """The process itself has used them up: connections of strangers may hold a share only."""
    ask, address = poor
    ask("fill")
    with socket.create_connection(address, timeout=5):
        cpu_seconds, *lines = ask("wait", 0.6)
        (line,) = [line for line in lines if "cannot accept" in line]  # once, not ten times
        assert f"RLIMIT_NOFILE lets this process have {LIMIT}" in line
        assert "ulimit -n" in line
        assert cpu_seconds < 0.3
    ask("empty")
    assert link_to(instance, address) == "LLM_SUCCESS"
    instance.check_link_status(9)


def test_a_dial_without_descriptors_says_so(poor, instance):
    ask, _ = poor
    ask("fill")
    status, *lines = ask("link", instance.listen_address)
    assert status == "LLM_LINK_FAILED"
    assert any(f"RLIMIT_NOFILE lets this process have {LIMIT}" in line for line in lines), lines
    ask("empty")
    assert ask("link", instance.listen_address)[0] == "LLM_SUCCESS"
