"""Runs the tests of this directory where there is no GPU, with a driver that stands in for one."""

import os
import subprocess
import sys

import pytest

from support.gpu import HERE, STAND_IN, load
from support.nixl_backends import NEEDS_NIXL

TESTS = HERE.parent


@NEEDS_NIXL
@pytest.mark.skipif(bool(STAND_IN), reason="this is that process")
def test_with_a_driver_that_stands_in(tmp_path):
    if load() is not None:
        pytest.skip("there is a GPU")
    library = tmp_path / "libcuda.so.1"
    flags = [
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
    ]
    source = str(HERE / "stand_in_driver.cc")
    subprocess.run(["g++", *flags, "-o", str(library), source], check=True)
    # UCX's own module for GPUs must not take it for a driver.
    more = {"LLM_DATADIST_STAND_IN_DRIVER": str(library), "UCX_MODULES": "^ib,cuda"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE)]
    done = subprocess.run(
        command,
        cwd=TESTS.parent,
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    # This test itself, and that of two processes, which only a GPU can be shared by.
    assert "passed, 2 skipped" in done.stdout
