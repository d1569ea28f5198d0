"""Limits and sandboxes: texts name the true cause and what to do, and what can go on does."""

import os

import pytest

from support.setup import run_program

PRELUDE = """
import ctypes, os, resource, struct, sys
from llm_datadist import LLMDataDist, LLMRole, LLMStatusCode
from support.setup import info_of, started

LLMDataDist(LLMRole.MIX, 0)  # the first instance imports what instances need

def made(cluster_id):
    return started(cluster_id, mem_pool_cfg='{"memory_size": 314572800}')

def linked():
    one, other = made(1), made(2)
    assert one.link_clusters([info_of(other)])[0] is LLMStatusCode.LLM_SUCCESS
    known = one.describe_link(2)
    print(known["backend"]["host"], known["why"])
    one.finalize()
    other.finalize()

def limit(name, value):
    which = getattr(resource, name)
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))

def address_space(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit("RLIMIT_AS", pages * resource.getpagesize() + more)

def denied(error, *calls):
    \"\"\"Have the kernel refuse system calls, by their numbers.\"\"\"
    load, equal, back = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0)]
    program += [(equal, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    program += [(back, 0, 0, 0x7FFF0000), (back, 0, 0, 0x00050000 | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    whole = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    whole = ctypes.create_string_buffer(whole)
    prctl = ctypes.CDLL(None).prctl
    assert prctl(38, 1, 0, 0, 0) == 0
    assert prctl(22, 2, ctypes.c_void_p(ctypes.addressof(whole)), 0, 0) == 0
"""

MEMFD, EVENTFD, READV = "319", "284, 290", "310"
ON_X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86-64")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="unmounting /proc needs root")


def run(program, *before):
    return run_program(PRELUDE + program, before=before)


SANDBOX = "let the sandbox of this process (seccomp) allow memfd_create and eventfd"


@pytest.mark.parametrize(
    ("cause", "status", "problem", "remedy"),
    [
        pytest.param(f"denied(1, {MEMFD})", "LLM_FAILED", "memfd_create", SANDBOX, marks=ON_X86),
        pytest.param(f"denied(38, {MEMFD})", "LLM_FAILED", "memfd_create", SANDBOX, marks=ON_X86),
        pytest.param(f"denied(1, {EVENTFD})", "LLM_FAILED", "eventfd", SANDBOX, marks=ON_X86),
        ("limit('RLIMIT_FSIZE', 1 << 20)", "LLM_FAILED", "ftruncate", "ulimit -f"),
        ("limit('RLIMIT_FSIZE', 200 << 20)", "LLM_OUT_OF_MEMORY", "mem_pool_cfg", "ulimit -f"),
        ("address_space(20 << 20)", "LLM_OUT_OF_MEMORY", "directory", "ulimit -v"),
        ("address_space(220 << 20)", "LLM_OUT_OF_MEMORY", "mem_pool_cfg", "ulimit -v"),
        *[
            (f"limit('RLIMIT_NOFILE', len(os.listdir('/proc/self/fd')) - 1 + {more})",
             "LLM_", "Too many open files", "ulimit -n")
            for more in range(5)
        ],
    ],
)  # fmt: skip
def test_init_names_the_cause_and_what_to_do(cause, status, problem, remedy):
    ran = run(f"{cause}\nmade(1)\n")
    assert ran.returncode == 1, ran
    text = ran.stderr.strip().rsplit("LLMException: ", 1)[1]
    assert f"init failed [{status}" in text
    assert problem in text
    assert remedy in text


def test_locked_memory_is_not_needed():
    assert run("limit('RLIMIT_MEMLOCK', 0)\nlinked()\n").stdout.startswith("host ")


@ON_X86
def test_without_process_vm_readv_links_take_lanes():
    ran = run(f"denied(1, {READV})\nlinked()\n")
    assert ran.stdout.startswith("tcp "), ran
    assert "Operation not permitted" in ran.stdout


@AS_ROOT
def test_without_proc_links_take_lanes():
    shell = 'umount -l /proc && exec "$@"'
    ran = run("linked()\n", "unshare", "-m", "sh", "-c", shell, "sh")
    assert ran.stdout.startswith("tcp "), ran
    assert "/proc cannot be read here" in ran.stdout


def test_a_forked_child_is_told_whose_instance_it_uses():
    ran = run("""
one = made(1)
manager = one.cache_manager
if os.fork() == 0:
    for call in (lambda: one.describe_relinks(), lambda: manager.unregister_cache(1)):
        try:
            call()
        except RuntimeError as error:
            print(error)
    with made(3) as own:
        print(own.cluster_id)
    sys.stdout.flush()
    os._exit(0)
assert os.wait()[1] == 0
one.describe_relinks()
""")
    assert ran.returncode == 0, ran
    assert ran.stdout.count("is not initialized in this process, which was forked") == 2
    assert ran.stdout.endswith("3\n")
