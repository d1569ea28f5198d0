"""Whether other users have processes on this host."""

import os

import pytest

from llm_datadist._links.listeners import has_other_users


class Process:
    def __init__(self, name, owner):
        self.name = name
        self._owner = owner

    def stat(self):
        if self._owner is None:
            raise FileNotFoundError(self.name)
        return os.stat_result((0, 0, 0, 0, self._owner, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ([("1", 0), ("2", 101), ("7", 1000), ("8", None), ("self", 1001)], False),
        ([("1", 0), ("7", 1000), ("9", 1001)], True),
        ([("9", 65534)], True),
    ],
)
def test_other_users_are_owners_of_processes(monkeypatch, processes, expected):
    class Found:
        def __enter__(self):
            return iter([Process(*each) for each in processes])

        def __exit__(self, *exc):
            return None

    monkeypatch.setattr(os, "scandir", lambda path: Found())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert has_other_users() is expected


def test_without_proc_there_is_nobody_to_see(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "scandir", missing)
    assert has_other_users() is False
