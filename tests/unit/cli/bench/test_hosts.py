"""Hosts of the two ends, which processes inherit."""

import json
import sys

from llm_datadist.cli.bench import hosts


def test_both_ends_are_on_this_host_unless_the_environment_has_others(monkeypatch):
    monkeypatch.delenv(hosts.VARIABLE, raising=False)
    assert hosts.address(hosts.OWNER) == "127.0.0.1"
    assert hosts.executable(hosts.LOCAL) == sys.executable
    assert hosts.prefix(hosts.LOCAL) == []
    ends = [
        {"address": f"192.0.2.{end}", "python": f"python-{end}", "name": f"space-{end}"}
        for end in range(2)
    ]
    monkeypatch.setenv(hosts.VARIABLE, json.dumps(ends))
    assert hosts.address(hosts.OWNER) == "192.0.2.1"
    assert hosts.executable(hosts.LOCAL) == "python-0"
    assert hosts.prefix(hosts.OWNER) == ["ip", "netns", "exec", "space-1"]
