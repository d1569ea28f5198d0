"""Two instances with a proxy between them."""

import pytest

from support.proxy import Proxy
from support.rig import BLOCKS, TIMEOUT_MS, WORDS, Rig, forget
from support.station import OK, Station


@pytest.fixture
def make_rig(caplog):
    """Make a rig; it ends with the test."""
    made = []

    def make(*, link=True, **options):
        options = {"sync_kv_timeout": TIMEOUT_MS, "transfer_backend": "tcp"} | options
        shape = {"blocks": options.pop("blocks", BLOCKS), "words": options.pop("words", WORDS)}
        made.append(Station(1, **shape, **options))
        made.append(Proxy(made[0].listen_address()))
        made.append(Station(2, None, **shape, **options))
        remote, proxy, local = made
        if link:
            assert local.call("link", proxy.address).status == OK
        return Rig(remote, local, proxy)

    yield make
    for each in reversed(made):
        each.close()
    forget(caplog)


@pytest.fixture
def rig(make_rig):
    return make_rig()
