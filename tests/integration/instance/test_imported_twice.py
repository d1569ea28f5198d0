"""A process that imports the package more than once."""

import pathlib
import shutil
import subprocess
import sys

import pytest

import llm_datadist
from llm_datadist import _native

PROGRAM = """
import ctypes, gc, sys

def linked(other=None):
    from llm_datadist import (
        BlocksCacheKey, CacheDesc, DataType, LLMClusterInfo, LLMConfig, LLMDataDist, LLMRole,
        LLMStatusCode,
    )
    config = LLMConfig()
    config.enable_cache_manager = True
    config.listen_ip_info = "127.0.0.1:0"
    instance = LLMDataDist(LLMRole.MIX, 1 if other is None else 2)
    instance.init(config.generate_options())
    memory = (ctypes.c_uint8 * 4096)(*([7] * 4096 if other is None else []))
    cache = instance.cache_manager.register_blocks_cache(
        CacheDesc(1, [4, 1024], DataType.DT_UINT8), [ctypes.addressof(memory)], BlocksCacheKey(1)
    )
    if other is not None:
        info = LLMClusterInfo()
        info.append_local_ip_info("127.0.0.1", 0)
        info.append_remote_ip_info(*other.listen_address)
        assert instance.link_clusters([info])[0] is LLMStatusCode.LLM_SUCCESS
        instance.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0, 1], [2, 3])
        assert bytes(memory) == bytes(2048) + bytes([7]) * 2048
    return instance, memory

first, kept = linked()
for name in [name for name in sys.modules if name.partition(".")[0] == "llm_datadist"]:
    del sys.modules[name]
if len(sys.argv) > 1:
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in str(finder)]
    sys.path.insert(0, sys.argv[1])
gc.collect()
second, more = linked(first)
import llm_datadist
assert len(sys.argv) < 2 or llm_datadist.__file__.startswith(sys.argv[1])
print("pulled")
"""


@pytest.fixture
def other_files(tmp_path):
    """A directory with a copy of the package."""
    copy = tmp_path / "llm_datadist"
    shutil.copytree(pathlib.Path(llm_datadist.__file__).parent, copy, dirs_exist_ok=True)
    shutil.copy(_native.__file__, copy)
    return tmp_path


def run(*arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "pulled\n", "")


def test_the_same_files_once_more():
    run()


def test_other_files(other_files):
    run(str(other_files))
