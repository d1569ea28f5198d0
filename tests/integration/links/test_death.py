"""What the death or silence of a peer does to its link, and to nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode

pytestmark = pytest.mark.expects_log("lost")


def test_a_killed_peer_is_noticed_at_once(end, child):
    a, b, c = end(1), child(2), end(3)
    a.link(b, c)
    link = a.table.get(2)
    b.kill()
    assert link.lost.wait(1)
    a.plane.wait(1)
    assert a.linked() == [3]
    assert "closed" in link.reason or "broke" in link.reason
    with pytest.raises(LLMException, match="was lost") as raised:
        a.table.get(2)
    assert raised.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK
    a.table.check(3, 1000)


def test_a_request_under_way_fails_when_the_peer_dies(end, child):
    a, b = end(1), child(2, mode="mute")
    link = a.link(b)[0].link
    errors = []

    def ask():
        try:
            a.table.request(link, b"x", 20_000)
        except LLMException as error:
            errors.append((error.status_code, time.monotonic()))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    a.table.check(2, 2000)  # the request is on its way
    died = time.monotonic()
    b.kill()
    asking.join(5)
    ((status, noticed),) = errors
    assert status is LLMStatusCode.LLM_LINK_FAILED
    assert noticed - died < 1


def test_a_peer_that_comes_back_is_linked_again(end, child):
    a, b = end(1), child(2)
    a.link(b)
    port = b.address[1]
    b.kill()
    again = child(2, listen_port=port)
    (result,) = a.link(again, cluster_id=2)
    assert result.is_ok, result
    a.table.check(2, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("dialer", ["survivor", "successor"])
def test_a_predecessor_whose_death_cannot_be_noticed_is_replaced(end, child, dialer):
    a, old, new = end(1), child(2), end(2)
    a.link(old)
    old.freeze()
    one, other = (a, new) if dialer == "survivor" else (new, a)
    (result,) = one.link(other)
    assert result.is_ok, result
    assert a.table.get(2).incarnation == new.incarnation
    old.signal(signal.SIGCONT)
    assert old.ask("linked") in ([], [1])
    a.table.check(2, 1000)


def test_the_forked_children_of_a_peer_do_not_hide_its_death(end, child):
    a, b = end(1), child(2)
    link = a.link(b)[0].link
    grandchild = b.ask("fork")
    try:
        b.kill()
        assert link.lost.wait(1)
        (result,) = a.link(b)
        assert result.status is LLMStatusCode.LLM_LINK_FAILED
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_forked_child_cannot_use_the_table_and_does_no_harm(end):
    a, b = end(1), end(2)
    a.link(b)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            a.table.close()
            a.table.check(2, 1000)
        except LLMException as error:
            code = 0 if "forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    a.table.check(2, 1000)
