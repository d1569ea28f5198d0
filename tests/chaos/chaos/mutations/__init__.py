"""Bugs that somebody may make, one by one: a suite that holds the guarantees notices each.

`tests/chaos/test_mutations.py` checks that all still apply; `make mutants` tries them.
"""

from chaos.mutations import (
    aio,
    arguments,
    backends,
    caches,
    domains,
    first_generation,
    guarantees,
    handshakes,
    host_reads,
    links,
    memory,
    native,
    requests,
    transfers,
    vllm,
)

_AREAS = (
    aio,
    guarantees,
    transfers,
    memory,
    caches,
    links,
    handshakes,
    domains,
    arguments,
    backends,
    first_generation,
    host_reads,
    native,
    requests,
    vllm,
)
MUTATIONS = tuple(mutation for area in _AREAS for mutation in area.MUTATIONS)
BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}
