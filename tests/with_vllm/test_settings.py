"""The same tokens with engines in other processes, with both roles, with groups, and a mismatch."""

from __future__ import annotations

import pytest

from support.vllm.engines import make_gemma, prompt
from support.vllm.pairs import mixed_prompts, pair_of, tokens_of


def test_engines_in_processes_of_their_own(model):
    with pair_of(model, inproc=False) as pair:
        prompts = mixed_prompts(1)
        expected = pair.monolithic(prompts)
        for round_ in ("one-", "two-"):
            offers = pair.offers(prompts, tag=round_)
            outputs = pair.decoded(prompts, offers, tag=round_)
            assert tokens_of(outputs) == expected


def test_both_roles_in_both_directions(model):
    with pair_of(model, roles=("kv_both", "kv_both"), secret="shared") as pair:
        for turn in range(2):
            prompts = {f"b{turn}{i}": prompt(40 + turn * 10 + i, 90 * (i + 1)) for i in range(4)}
            expected = pair.monolithic(prompts)
            outputs = pair.decoded(prompts, pair.offers(prompts))
            assert tokens_of(outputs) == expected
            assert [outputs[name]["cached"] for name in prompts] == [89, 179, 269, 359]
            pair.reset()
            pair.prefill, pair.decode = pair.decode, pair.prefill


@pytest.mark.parametrize("tp_size", [1, 2])
def test_sliding_windows_with_several_groups(tmp_path, tp_size):
    producer = {"tensor_parallel_size": tp_size}
    with pair_of(make_gemma(tmp_path / "gemma"), prefill=producer) as pair:
        prompts = {f"g{i}": prompt(60 + i, length) for i, length in enumerate((40, 200, 333, 700))}
        expected = pair.monolithic(prompts)
        outputs = pair.decoded(prompts, pair.offers(prompts))
        assert tokens_of(outputs) == expected
        assert [outputs[name]["cached"] for name in prompts] == [39, 199, 332, 699]


def test_corrupted_blocks_are_noticed_and_computed(model):
    """One byte of some transfers arrives as another one: with checksums no token shows it."""
    prompts = {f"c{i}": prompt(80 + i, 400) for i in range(6)}
    with pair_of(model, checksum="crc32c", concurrent_loads=1) as pair:
        expected = pair.monolithic(prompts)
        offers = pair.offers(prompts)
        pair.decode.ask("corrupt", [1, 3, 4])
        outputs = pair.decoded(prompts, offers)
        assert pair.decode.ask("mend") == 3
        assert tokens_of(outputs) == expected
        fetched = [output["cached"] for output in outputs.values()]
        assert 0 < sum(cached == 399 for cached in fetched) < 6, fetched
        again = pair.decoded(prompts, pair.offers(prompts, "again-"), tag="again-")
        assert tokens_of(again) == expected


@pytest.mark.parametrize("what", ["block size"])
def test_engines_that_do_not_fit_compute(model, what):
    with pair_of(model, prefill={"block_size": 64}) as pair:
        prompts = {"m": prompt(70, 300)}
        expected = pair.monolithic(prompts)
        outputs = pair.decoded(prompts, pair.offers(prompts))
        assert tokens_of(outputs) == expected
        assert outputs["m"]["cached"] == 0
