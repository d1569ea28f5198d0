import select
import socket
import types

import pytest

from llm_datadist import LLMException
from llm_datadist._control.patched import check_not_patched


def replacement(module):
    return types.SimpleNamespace(__module__=module)


def test_the_original_modules_are_accepted():
    check_not_patched()


@pytest.mark.parametrize(
    ("module", "remedy"),
    [("gevent._socket3", "gevent.monkey.patch_all"), ("eventlet.greenio", "eventlet.monkey_patch")],
)
def test_cooperative_ones_are_named(monkeypatch, module, remedy):
    monkeypatch.setattr(socket, "socket", replacement(module))
    monkeypatch.setattr(select, "select", replacement(module))
    with pytest.raises(LLMException, match=f"patched socket, select of.*{remedy}"):
        check_not_patched()


def test_replacements_of_others_are_no_concern(monkeypatch):
    monkeypatch.setattr(socket, "socket", replacement("socks"))
    check_not_patched()
