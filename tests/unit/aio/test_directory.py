"""The file in which nodes find addresses."""

import fcntl
import json
import os
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


def test_a_file_that_stays_locked_is_an_error(path):
    directory = FileDirectory(path, lock_timeout_s=0)
    directory.announce("a", "host:1")
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match=r"locked by another process .* end that process"):
            directory.find("a")
    assert directory.find("a") == "host:1"


def test_a_process_that_is_forked_meanwhile_does_not_keep_the_lock(path, monkeypatch):
    directory, copies = FileDirectory(path, lock_timeout_s=0), []
    read = FileDirectory._read

    def forked(self, file):
        copies.append(os.dup(file.fileno()))  # of the same open file, as a child has it
        return read(self, file)

    monkeypatch.setattr(FileDirectory, "_read", forked)
    directory.announce("a", "host:1")
    directory.announce("b", "host:2")
    assert directory.find("a") == "host:1"
    for descriptor in copies:
        os.close(descriptor)


def test_a_file_that_other_users_can_write_is_not_trusted(path, monkeypatch):
    directory = FileDirectory(path)
    directory.announce("a", "host:1")
    path.chmod(0o606)
    with pytest.raises(PermissionError, match=r"mode 606.* other users could say"):
        directory.find("a")
    path.chmod(0o660)  # a group is the owner's choice
    assert directory.find("a") == "host:1"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid():
        with pytest.raises(PermissionError, match=f"belongs to user {os.getuid()}"):
            directory.find("a")


def test_what_is_no_regular_file_is_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no regular file"):
        FileDirectory(path).find("a")
