"""Data paths of a run, and whether the other libraries are there."""

import pytest

from llm_datadist.cli.bench.paths import PATHS, RIVALS, check_installed


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nixl", "--vs nixl: it is not installed: pip install --no-deps nixl-cu12"),
        ("mooncake", "not installed: pip install --no-deps mooncake-transfer-engine-non-cuda"),
        ("gds", "--vs gds: unknown; give one of nixl, mooncake"),
    ],
)
def test_a_library_that_is_not_there_is_named_with_the_remedy(monkeypatch, name, text):
    monkeypatch.setattr("llm_datadist.cli.bench.paths.PACKAGE", None)
    monkeypatch.setattr("llm_datadist.cli.bench.paths.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=text):
        check_installed(name)


def test_every_path_has_contenders_of_different_names():
    for path in PATHS.values():
        assert set(path.rivals) <= set(RIVALS)
        kinds = [path.own, *path.rivals.values(), path.limit, path.ceiling]
        names = [kind.name for kind in kinds if kind is not None]
        assert len(set(names)) == len(names)
