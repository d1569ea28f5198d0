"""Set-ups that make way for each other, and the index of links."""

import asyncio

import pytest

from llm_datadist._links import state
from llm_datadist._links.link import LinkState
from llm_datadist._links.state import LinkIndex, Relink, Setup, WithdrawnError
from llm_datadist._types.stats import LinkStats


def test_the_end_of_a_set_up_is_waited_for():
    async def run():
        setup = Setup(2, 5)
        waiting = asyncio.ensure_future(setup.wait_or_withdraw())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert not setup.withdrawn.is_set()
        setup.ended.set()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(run())


def test_a_set_up_that_stalls_is_withdrawn_and_its_work_canceled(monkeypatch):
    monkeypatch.setattr(state, "STALL_SECONDS", 0.01)
    canceled = []

    async def stall():
        try:
            await asyncio.Event().wait()
        finally:
            canceled.append(True)

    async def run():
        setup = Setup(2, 5)
        working = asyncio.ensure_future(setup.unless_withdrawn(stall()))
        waiting = asyncio.ensure_future(setup.wait_or_withdraw())
        with pytest.raises(WithdrawnError):
            await working
        setup.ended.set()
        await waiting

    asyncio.run(run())
    assert canceled == [True]


def test_the_result_of_work_that_is_not_withdrawn():
    async def run():
        return await Setup(2, 5).unless_withdrawn(asyncio.sleep(0, "done"))

    assert asyncio.run(run()) == "done"


def test_a_rival_is_another_instance_of_the_same_cluster():
    index = LinkIndex()
    index.dials[5] = setup = Setup(2, 5)
    assert index.rival_setup(2, 6) is setup
    assert index.rival_setup(2, 5) is None
    assert index.rival_setup(3, 6) is None


def test_only_the_oldest_stalled_set_up_is_withdrawn(monkeypatch):
    index = LinkIndex()
    first, second = Setup(2, 5), Setup(3, 6)
    index.inbounds.update({5: first, 6: second})
    assert not index.withdraw_stalled()
    monkeypatch.setattr(Setup, "is_stalled", True)
    assert index.withdraw_stalled()
    assert (first.withdrawn.is_set(), second.withdrawn.is_set()) == (True, False)


def test_a_link_is_up_then_leaving_and_a_new_one_replaces_a_dead_one(make_link):
    index, link = LinkIndex(), make_link(2)
    index.add(link)
    assert index.links == {2: link}
    assert index.ends == {2: link}
    index.remove(link)
    index.remember_death(link)
    assert not index.links
    assert index.leaving_from(2) is link
    assert index.dead == {2: link}
    index.add(make_link(2))
    assert not index.dead


def test_links_are_counted_by_state(make_link):
    index = LinkIndex()
    leaving = [make_link(cluster_id) for cluster_id in (3, 4, 5)]
    for link in (make_link(2), *leaving):
        index.add(link)
    leaving[0].enter(LinkState.UNLINKING)
    leaving[1].enter(LinkState.LOST)
    leaving[2].enter(LinkState.LOST)
    for link in leaving:
        index.remove(link)
    index.relinks[4] = relink = Relink(leaving[1])
    index.dials[10], index.dials[11] = Setup(6, 10), Setup(4, 11, relink)
    index.inbounds[12] = Setup(7, 12)
    assert index.stats(9) == LinkStats(
        connecting=2, linked=1, unlinking=1, lost=2, reconnecting=1, relinked=9
    )
