"""leaks: each kind of holding is seen, named, and forgiven once it is gone."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm_datadist.testing import leaks_since, snapshot

NO_TIME = 0.0


def test_nothing_done_nothing_leaked():
    before = snapshot()
    assert leaks_since(before, NO_TIME) == []


def test_a_descriptor():
    before = snapshot()
    reader, writer = os.pipe()
    leaks = leaks_since(before, NO_TIME)
    assert len(leaks) == 2
    assert leaks[0].startswith(f"descriptor {min(reader, writer)}: pipe:")
    os.close(reader)
    os.close(writer)
    assert leaks_since(before, NO_TIME) == []


def test_a_thread():
    before = snapshot()
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    (leak,) = leaks_since(before, NO_TIME)
    assert leak.startswith(f"thread {thread.native_id}: ")
    go_on.set()
    assert leaks_since(before) == []
    thread.join()


def test_a_thread_that_is_ending_gets_time():
    before = snapshot()
    threading.Timer(0.05, lambda: None).start()
    assert leaks_since(before) == []


def test_a_name_that_is_cut_within_a_letter():
    """The kernel keeps 15 bytes of a process's name, which may end with half a letter."""
    comm = Path("/proc/self/comm")
    name = comm.read_bytes().strip()
    comm.write_bytes(b"half a letter \xc3")
    try:
        assert leaks_since(snapshot(), NO_TIME) == []
    finally:
        comm.write_bytes(name)


def test_a_child_process():
    before = snapshot()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        leaks = leaks_since(before, NO_TIME)
    finally:
        child.communicate(timeout=10)
    assert any(leak.startswith(f"process {child.pid}: ") for leak in leaks)
    assert leaks_since(before, NO_TIME) == []


NAMES_ITSELF = """
import ctypes
ctypes.CDLL(None).prctl(15, b"\\xff")
print("named", flush=True)
input()
"""


def test_names_of_processes_need_not_be_text():
    """The kernel cuts a name after 15 bytes, even within a character."""
    command = [sys.executable, "-c", NAMES_ITSELF]
    before = snapshot()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"named\n"
        leaks = leaks_since(before, NO_TIME)
        assert any(leak.startswith(f"process {child.pid}: ") for leak in leaks)
        child.communicate(b"\n")


def test_names_of_threads_and_mapped_files_need_not_be_text():
    before = snapshot()
    named, go_on = threading.Event(), threading.Event()

    def run():
        ctypes.CDLL(None).prctl(15, b"\xff")
        named.set()
        go_on.wait()

    thread = threading.Thread(target=run)
    thread.start()
    assert named.wait(10)
    fd = os.memfd_create(b"\xff")
    os.ftruncate(fd, 4096)
    mapping = mmap.mmap(fd, 4096)
    os.close(fd)
    leaks = leaks_since(before, NO_TIME)
    assert any(leak.startswith(f"thread {thread.native_id}: ") for leak in leaks)
    assert any(leak.startswith("mapping of /memfd:") for leak in leaks)
    mapping.close()
    go_on.set()
    thread.join()


def test_a_mapping_outlives_its_descriptor():
    before = snapshot()
    fd = os.memfd_create("leaked")
    os.ftruncate(fd, 4096)
    mapping = mmap.mmap(fd, 4096)  # keeps a duplicate of the descriptor
    os.close(fd)
    leaks = leaks_since(before, NO_TIME)
    assert any(leak.startswith("mapping of /memfd:leaked") for leak in leaks)
    mapping.close()
    assert leaks_since(before, NO_TIME) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_a_shared_memory_file():
    before = snapshot()
    path = Path(f"/dev/shm/llm-datadist-test-{os.getpid()}")
    path.write_bytes(b"x")
    assert f"shared memory {path.name}" in leaks_since(before, NO_TIME)
    path.unlink()
    assert leaks_since(before, NO_TIME) == []


MAPS_A_FILE = """
import mmap, sys
with open(sys.argv[1], "xb+") as file:
    file.truncate(4096)
    memory = mmap.mmap(file.fileno(), 4096)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
@pytest.mark.parametrize("is_child", [True, False])
def test_a_shared_memory_file_of_another_program_does_not_count(is_child):
    path = Path(f"/dev/shm/llm-datadist-test-{os.getpid()}-mapped")
    command = [sys.executable, "-c", MAPS_A_FILE, str(path)]
    if not is_child:  # its parent ends, so that it is not below this process
        command = ["sh", "-c", 'exec 3<&0; "$@" <&3 &', "sh", *command]
    before = snapshot()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"mapped\n"
            if not is_child:
                process.wait(10)
            leaks = leaks_since(before, NO_TIME)
            assert (f"shared memory {path.name}" in leaks) is is_child
        finally:
            process.stdin.close()
            process.kill()
            path.unlink(missing_ok=True)
