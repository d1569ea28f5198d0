"""Processes that the system restricts: a system call is denied, or a namespace is their own."""

from __future__ import annotations

import ctypes
import json
import platform
import struct
import subprocess

import pytest

from support.setup import run_program

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER_MODE = 22, 38, 2
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filters", ctypes.c_char_p))


def deny_reads(number):
    """From now on process_vm_readv fails with this errno, here and in children."""
    steps = [
        (_LOAD_NUMBER, 0, 0, 0),
        (_JUMP_IF_EQUAL, 0, 1, PROCESS_VM_READV[platform.machine()]),
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    ]
    filters = b"".join(struct.pack("HBBI", *step) for step in steps)
    library = ctypes.CDLL(None, use_errno=True)
    assert library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    program = _Program(len(steps), filters)
    assert library.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0) == 0


def findings_of(call, preparation="", *, namespaces=()):
    """Run a check of `doctor` in a process; return its findings as dicts.

    Args:
        call: Such as "limits.stack()".
        preparation: Statements before it.
        namespaces: Options of `unshare`; the test is skipped where they are not permitted.
    """
    before = ()
    if namespaces:
        before = ("unshare", "--user", "--map-root-user", *namespaces)
        if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
            pytest.skip("namespaces are not permitted here")
    module = call.partition(".")[0]
    program = f"""
import json
from dataclasses import asdict
from llm_datadist.cli.doctor import {module}
{preparation}
print(json.dumps([asdict(each) for each in {call}]))
"""
    done = run_program(program, before=before)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
