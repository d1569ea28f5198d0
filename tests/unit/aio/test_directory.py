"""The file in which nodes find addresses."""

import fcntl
import json
import stat
import threading

import pytest

from llm_datadist.aio.directory import FileDirectory


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nodes"


def test_names_are_announced_found_and_withdrawn(path):
    directory = FileDirectory(path)
    assert directory.find("a") is None
    directory.announce("a", "host:1")
    directory.announce("b", "host:2")
    directory.announce("a", "host:33")
    assert FileDirectory(str(path)).find("a") == "host:33"
    directory.withdraw("a", "host:1")  # of an earlier node of that name
    assert directory.find("a") == "host:33"
    directory.withdraw("a", "host:33")
    directory.withdraw("a", "host:33")
    assert json.loads(path.read_text()) == {"b": "host:2"}


def test_only_the_owner_can_change_where_nodes_connect(path):
    FileDirectory(path).find("a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nodes_that_announce_at_the_same_time_are_all_there(path):
    names = [f"node-{number}" for number in range(8)]
    threads = [
        threading.Thread(target=FileDirectory(path).announce, args=(name, f"{name}:1"))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads(path.read_text()) == {name: f"{name}:1" for name in names}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "7", "[" * 100_000])
def test_another_file_is_left_alone(path, text):
    path.write_text(text)
    directory = FileDirectory(path)
    for call in (lambda: directory.find("a"), lambda: directory.announce("a", "b:1")):
        with pytest.raises(ValueError, match=r"is no directory of nodes .* another file"):
            call()
    assert path.read_text() == text


@pytest.mark.parametrize("call", ["announce", "withdraw", "find"])
def test_nothing_is_read_or_written_while_another_process_changes_the_file(path, call):
    directory = FileDirectory(path)
    directory.announce("a", "host:1")
    arguments = ("a",) if call == "find" else ("a", "host:1")
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=getattr(directory, call), args=arguments)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
