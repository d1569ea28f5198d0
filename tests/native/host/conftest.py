"""A peer process, and reads from it with and without checksums."""

import pytest

from support.host_reads import Reading


@pytest.fixture(params=[False, True], ids=["read", "read_and_sum"])
def reading(node, peer_process, pages, tools, request):
    made = []

    def make(count=64):
        made.append(Reading(node, peer_process, pages, tools, count, sums=request.param))
        return made[-1]

    yield make
    for each in made:
        each.host.close()
