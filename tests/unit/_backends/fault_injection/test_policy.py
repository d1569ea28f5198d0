"""The policy: which transfer gets which fault, and the same ones again."""

import pytest

from llm_datadist.testing import FaultPolicy, FaultRule


def decided(policy, transfers):
    return [policy.decide(write=write, cluster_id=peer) for write, peer in transfers]


def test_without_rules_nothing_goes_wrong():
    policy = FaultPolicy(seed=3)
    assert decided(policy, [(True, 1), (False, 2)]) == [None, None]
    assert policy.decisions == ()
    assert policy.posts == 2


def test_the_nth_transfer_that_the_rule_fits():
    policy = FaultPolicy([FaultRule("fail", nth=2, write=False, cluster_id=7, code="TIMEOUT")])
    transfers = [(False, 7), (True, 7), (False, 8), (False, 7), (False, 7)]
    assert [bool(each) for each in decided(policy, transfers)] == [0, 0, 0, 1, 0]
    (decision,) = policy.decisions
    assert (decision.post, decision.action, decision.code) == (4, "fail", "TIMEOUT")
    assert (decision.write, decision.cluster_id) == (False, 7)


def test_the_first_rule_that_applies_decides_and_all_count():
    policy = FaultPolicy([FaultRule("refuse", nth=1), FaultRule("delay", nth=2, delay_ms=5)])
    refused, delayed, fine = decided(policy, [(True, 1)] * 3)
    assert refused.action == "refuse"
    assert (delayed.action, delayed.delay_ms) == ("delay", 5)
    assert fine is None


def test_a_seed_chooses_and_repeats():
    rules = [FaultRule("short", chance=0.5), FaultRule("corrupt", chance=0.5)]
    transfers = [(False, 1), (True, 2)] * 50

    def run(seed):
        policy = FaultPolicy(rules, seed)
        decided(policy, transfers)
        return policy.decisions

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert {each.action for each in run(1)} == {"short", "corrupt"}
    assert len({each.place for each in run(1)}) > 50
    assert all(0 <= each.place < 1 for each in run(1))


def test_decisions_can_be_replayed_whatever_the_rules_were():
    policy = FaultPolicy([FaultRule("fail", chance=0.3)], seed=5)
    first = decided(policy, [(True, 1)] * 30)
    again = FaultPolicy.replay(policy.decisions)
    assert decided(again, [(True, 1)] * 30) == first
    assert again.decisions == policy.decisions != ()


def test_it_prints_what_makes_it_the_same_again():
    policy = FaultPolicy([FaultRule("drop", nth=4)], seed=9)
    copied = eval(repr(policy), {"FaultPolicy": FaultPolicy, "FaultRule": FaultRule})
    assert (copied.rules, copied.seed) == (policy.rules, policy.seed)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"action": "explode"}, "refuse"),
        ({"action": "fail", "code": "BROKEN"}, "TIMEOUT"),
        ({"action": "fail", "code": "OK"}, "corrupt"),
    ],
)
def test_rules_that_cannot_be(arguments, word):
    with pytest.raises(ValueError, match=word):
        FaultRule(**arguments)
