"""Many threads linking and unlinking the same few instances at once."""

from __future__ import annotations

import random
import threading

import pytest

from llm_datadist._errors import LLMStatusCode

OK = LLMStatusCode.LLM_SUCCESS


@pytest.mark.slow
def test_nobody_is_taken_for_dead_and_all_can_link_in_the_end(end):
    """A link that is lost here (the log would tell) means that two set-ups of it went through."""
    ends = [end(number, lanes_per_link=1) for number in range(3)]
    seen = set()

    def churn(seed):
        choose = random.Random(seed)
        for _ in range(120):
            one, other = choose.choice(ends), choose.choice(ends)
            act = choose.choice(["link", "link", "link", "unlink", "force"])
            if act == "link":
                (result,) = one.link(other, timeout_ms=20_000)
            else:
                (result,) = one.unlink(other, timeout_ms=20_000, force=act == "force")
            seen.add((result.status, result.reason))

    threads = [threading.Thread(target=churn, args=(seed,), daemon=True) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert seen == {(OK, "")}
    for one in ends:
        assert {result.status for result in one.link(*ends)} == {OK}
    for one in ends:
        assert one.linked() == [0, 1, 2]
        assert len(one.plane.links) == 4  # its own link has both ends here
