"""Bugs of domains: what members agree on, and how they meet."""

from chaos.mutation import Mutation

_DOMAIN = "src/llm_datadist/_domains/domain.py"
_RENDEZVOUS = "src/llm_datadist/_domains/rendezvous.py"
_DOMAIN_TESTS = "tests/unit/_domains"

MUTATIONS = (
    Mutation(
        "place-of-another-member",
        "a member that must accept and has no place to listen fails its domain at once",
        "src/llm_datadist/_domains/domains.py",
        'domain.fail(f"cannot listen for members of higher rank: {problem}")',
        "pass",
        tests="tests/integration/domains/test_meeting.py -k middle",
    ),
    Mutation(
        "expected-in-any-domain",
        "a dialer hears of the domains in which it is expected, and of no others",
        "src/llm_datadist/_domains/book.py",
        "pair.peer_id == peer_id and not pair.dials",
        "pair.peer_id == peer_id or not pair.dials",
        tests="tests/unit/_domains/test_book.py",
    ),
    Mutation(
        "members-disagree",
        "members that call link unlike make no domain",
        _DOMAIN,
        "if hello.ranks == own.ranks and hello.rank == own.ranks.get(peer_id):",
        "if hello.ranks.keys() == own.ranks.keys():",
        tests=f"{_DOMAIN_TESTS}/test_domain.py",
    ),
    Mutation(
        "domain-without-deadline",
        "a domain fails at its time limit",
        _DOMAIN,
        "if not self.is_complete and now >= self.deadline:",
        "if False:",
        tests=f"{_DOMAIN_TESTS}/test_domain.py",
    ),
    Mutation(
        "failed-domain-recovers",
        "the failure of a domain is final",
        _DOMAIN,
        "        if self.failure:\n            return RegisterMemStatus.FAILED\n",
        "        if self.failure and not self.is_complete:\n            return RegisterMemStatus.FAILED\n",
        tests=f"{_DOMAIN_TESTS}/test_domain.py",
    ),
    Mutation(
        "dead-member-unnoticed",
        "the death of a member fails the domain",
        _DOMAIN,
        "                if link.died:  # The link table has logged the warning.\n",
        "                if False:\n",
        tests=f"{_DOMAIN_TESTS}/test_domain.py",
    ),
    Mutation(
        "wrong-acceptor",
        "a dial for another member is refused",
        _DOMAIN,
        "        if hello.acceptor != self.cluster_id:\n",
        "        if False:\n",
        tests=f"{_DOMAIN_TESTS}/test_domain.py",
    ),
    Mutation(
        "leave-of-an-earlier-call",
        "the end of an earlier call of link changes nothing",
        _DOMAIN,
        "if pair is None or pair.hello is None or pair.hello.token != message.token:",
        "if pair is None or pair.hello is None:",
        tests=f"{_DOMAIN_TESTS}/test_domain.py",
    ),
    Mutation(
        "names-used-twice",
        "two live domains have two names",
        "src/llm_datadist/_domains/book.py",
        "if same is not None and same.status(now) is not RegisterMemStatus.FAILED:",
        "if same is not None and same.status(now) is RegisterMemStatus.OK:",
        tests=_DOMAIN_TESTS,
    ),
    Mutation(
        "the-only-address-is-cut",
        "the only address of a peer has the full time to answer",
        _RENDEZVOUS,
        "if len(addresses) > 1:",
        "if len(addresses) >= 1:",
        tests=f"{_DOMAIN_TESTS}/test_rendezvous.py",
    ),
    Mutation(
        "slow-addresses-are-never-reached",
        "an address has longer to answer in each round",
        _RENDEZVOUS,
        "        self._misses[peer_id] += 1\n",
        "",
        tests=f"{_DOMAIN_TESTS}/test_rendezvous.py",
    ),
    Mutation(
        "answered-address-last",
        "an address that has answered is dialed first",
        _RENDEZVOUS,
        "key=lambda address: address != answered",
        "key=lambda address: address == answered",
        tests=f"{_DOMAIN_TESTS}/test_rendezvous.py",
    ),
    Mutation(
        "not-yet-is-refused",
        "a peer that has not called yet is asked again",
        _RENDEZVOUS,
        "frozenset({LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_PROCESSING_LINK})",
        "frozenset({LLMStatusCode.LLM_PROCESSING_LINK})",
        tests=f"{_DOMAIN_TESTS}/test_rendezvous.py",
    ),
    Mutation(
        "joins-after-the-deadline",
        "no peer is asked to join after the deadline",
        _RENDEZVOUS,
        "        if seconds <= 0:\n            return Meeting(Outcome.UNREACHED",
        "        if False:\n            return Meeting(Outcome.UNREACHED",
        tests=f"{_DOMAIN_TESTS}/test_rendezvous.py",
    ),
)
