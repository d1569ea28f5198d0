"""What new users do wrong that takes more than one call; `first_mistakes` has the table."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    metrics,
)
from support.first_generation import started
from support.setup import ANY_PORT, options_of

if TYPE_CHECKING:
    from collections.abc import Callable


KEY = BlocksCacheKey(2)


class Mistake(NamedTuple):
    """A mistake.

    Attributes:
        do: Makes it, with the linked instances 1 and 2; raises.
        operation: What the text begins with: the call or command.
        subject: The peer or argument that the text names.
        remedy: Words of what to do instead.
    """

    do: Callable[[Any], object]
    operation: str
    subject: str
    remedy: str


class CommandFailed(Exception):
    """A command of the command line ended with an error; its output on one line."""


def command(*arguments):
    """Run `llm-datadist`; raise what it has written if it fails."""
    from typer.testing import CliRunner

    from llm_datadist.cli.app import app

    outcome = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "500", "TERM": "dumb"})
    if outcome.exit_code:
        text = re.sub(r"[\s\u2500-\u257f]+", " ", outcome.output)
        raise CommandFailed(text)


@contextlib.contextmanager
def instance(number=9, **options):
    with LLMDataDist(LLMRole.MIX, number) as made:
        made.init(options_of(listen_ip_info=ANY_PORT, **options))
        yield made


def of(name, *arguments, **named):
    """A call of the cache manager of instance 1."""
    return lambda world: getattr(world.manager, name)(*arguments, **named)


def init(role=LLMRole.MIX, **options):
    config = LLMConfig()
    config.enable_cache_manager = True
    for name, value in options.items():
        setattr(config, name, value)
    with LLMDataDist(role, 9) as made:
        made.init(config.generate_options())


def set_option(name, value):
    setattr(LLMConfig(), name, value)


def link_between(options, others):
    with instance(8, **options) as one, instance(9, **others) as other:
        one.link_peer(other.listen_address)


def link_to_another_server(world):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def answer():
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            world.near.link_peer(server.getsockname(), timeout=10_000)
        finally:
            thread.join()


def listen_twice(_):
    with instance() as made:
        ip, port = made.listen_address
        init(listen_ip_info=f"{ip}:{port}")


def unregistered_twice(world):
    cache = world.manager.register_tensors([np.zeros((4, 64), np.float32)])
    world.manager.unregister_cache(cache.cache_id)
    world.manager.pull_blocks(BlocksCacheKey(2), cache, [0], [1])


def without_layout(world):
    cache = world.manager.register_tensors([np.zeros((4, 64), np.float32)])
    try:
        world.manager.pull_resharded([KEY], cache, [[0]], [1], 4)
    finally:
        world.manager.unregister_cache(cache.cache_id)


def unequal_types(world):
    half = [np.zeros((4, 64), np.float16) for _ in range(2)]
    cache = world.manager.register_tensors(half)
    try:
        world.manager.pull_blocks(BlocksCacheKey(2), cache, [0], [1])
    finally:
        world.manager.unregister_cache(cache.cache_id)


def missing(*modules):
    """Without an extra."""
    return mock.patch.dict(sys.modules, dict.fromkeys(modules))


def metrics_without_the_extra(world):
    with missing("prometheus_client", "prometheus_client.core", "prometheus_client.exposition"):
        metrics.serve_metrics(world.near, 0)


def metrics_on_a_taken_port(world):
    with socket.create_server(("127.0.0.1", 0)) as server:
        metrics.serve_metrics(world.near, server.getsockname()[1])


def extra_config(**values):
    from llm_datadist.integrations.vllm.options import parse_extra_config

    return lambda _: parse_extra_config(values)


def two_generations(world):
    made = started(LLMRole.PROMPT, 9)
    try:
        world.near.link_peer(made.listen_address)
    finally:
        made.finalize()


def allocated(options, desc):
    with instance(**options) as made:
        made.cache_manager.allocate_blocks_cache(desc)


def first_generation(role, call):
    def do(_):
        made = started(role, 9)
        try:
            call(made)
        finally:
            made.finalize()

    return do
