"""Processes whose standard modules gevent has patched."""

import subprocess
import sys

import pytest

pytest.importorskip("gevent", reason="gevent is not installed")

PROGRAM = """
import gevent.monkey
gevent.monkey.patch_all({arguments})
from llm_datadist import LLMClusterInfo, LLMConfig, LLMDataDist, LLMException, LLMRole

config = LLMConfig()
config.enable_cache_manager = True
config.listen_ip_info = "127.0.0.1:0"
one, other = LLMDataDist(LLMRole.MIX, 1), LLMDataDist(LLMRole.MIX, 2)
try:
    one.init(config.generate_options())
except LLMException as error:
    raise SystemExit(str(error))
other.init(config.generate_options())
info = LLMClusterInfo()
info.append_local_ip_info("127.0.0.1", 0)
info.append_remote_ip_info(*other.listen_address)
print(one.link_clusters([info])[0].name)
one.finalize()
other.finalize()
"""


def run(arguments):
    program = PROGRAM.format(arguments=arguments)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "patched"),
    [("", "thread, socket, select, ssl"), ("thread=False, ssl=False", "socket, select")],
)
def test_init_says_what_to_patch_instead(arguments, patched):
    ran = run(arguments)
    assert ran.returncode == 1, ran
    assert "[LLM_FAILED]: gevent has patched " + patched + " of this process" in ran.stderr
    assert "patch_all(thread=False, socket=False, select=False, ssl=False)" in ran.stderr


def test_what_it_says_works():
    ran = run("thread=False, socket=False, select=False, ssl=False")
    assert (ran.returncode, ran.stdout) == (0, "LLM_SUCCESS\n"), ran.stderr
