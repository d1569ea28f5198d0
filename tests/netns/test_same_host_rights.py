"""What the same-host path needs of two processes: the table of docs/howto/containers.md."""

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey
from llm_datadist.testing import PeerGroup
from support.setup import ANY_PORT, started

pytestmark = [pytest.mark.netns, pytest.mark.slow]

NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
USER_NAMESPACE = ("unshare", "--user", "--map-root-user")
PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def serve(member):
    with started(1, listen=ANY_PORT, allow_anonymous=True) as prefill:
        memory = np.ones((2, 4, 64), np.float32)
        prefill.cache_manager.register_tensors(list(memory), BlocksCacheKey(1))
        member.set_event("listening", "{}:{}".format(*prefill.listen_address))
        member.wait_end()


def pull(member):
    with started(2, listen=None, sync_kv_timeout=10_000) as decode:
        memory = np.zeros((2, 4, 64), np.float32)
        cache = decode.cache_manager.register_tensors(list(memory))
        decode.link_peer(member.wait_for("listening"), timeout=10_000)
        decode.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [3])
        assert memory[:, 3].all()
        facts = decode.describe_link(1)
        return [facts["backend"]["host"], facts["why"]["host"]]


@pytest.mark.parametrize(
    ("owner", "reader", "path", "why"),
    [
        (NO_CAPABILITIES, NO_CAPABILITIES, "host", "the best path"),
        ((), NO_CAPABILITIES, "tcp", "its memory cannot be read"),
        (USER_NAMESPACE, USER_NAMESPACE, "tcp", "its memory cannot be read"),
        (PID_NAMESPACE, (), "tcp", "another process-id namespace"),
    ],
    ids=["equal", "fewer capabilities", "user namespaces", "pid namespace"],
)
def test_the_path(owner, reader, path, why):
    with PeerGroup() as group:
        group.start(serve, command_prefix=owner)
        used, reason = group.start(pull, command_prefix=reader).value()
    assert used == path
    assert why in reason
