"""Permission to read the peer's memory can be lost after the link was made."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("lost_permission.py")


def test_reads_go_over_the_lanes_from_then_on_and_describe_link_says_so():
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["pulled"] == [True, True]
    assert "process_vm_readv" in told["before"]["reads"]
    assert "over the lanes" in told["after"]["reads"]
    assert "not permitted" in told["after"]["reads"]
