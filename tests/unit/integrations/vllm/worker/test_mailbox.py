"""Mailboxes: a message counts when all of it has arrived."""

import ctypes
import hashlib

import numpy as np
import pytest

from llm_datadist.integrations.vllm.worker import mailbox
from llm_datadist.integrations.vllm.worker.mailbox import Mailbox, Receipt, Ticket
from support.vllm.fake_worker import FakeWorker

KEY = 50
MESSAGE = Receipt(prompt="the prompt", problem="given up")


@pytest.fixture
def box():
    worker = FakeWorker()
    made = Mailbox(worker, 1, KEY)
    made.address = worker._mailboxes[KEY]
    return made


def write(box, page, size):
    ctypes.memmove(box.address, page.ctypes.data, size)


def test_a_message_is_read_when_all_of_it_has_arrived(box):
    page = mailbox._page_of(MESSAGE)
    used = int(np.flatnonzero(page)[-1]) + 1
    for size in (0, 1, 4, mailbox._HEADER.size, mailbox._HEADER.size + 1, used - 1):
        write(box, page, size)
        assert box.read(Receipt) is None, size
    write(box, page, used)
    assert box.read(Receipt) == MESSAGE
    assert box.read(Ticket) is None, "it is of the other kind"


@pytest.mark.parametrize("at", [0, 4, mailbox._HEADER.size])
def test_a_message_with_another_byte_is_none(box, at):
    page = mailbox._page_of(MESSAGE)
    page[at] ^= 1
    write(box, page, page.nbytes)
    assert box.read(Receipt) is None


def test_a_size_beyond_the_page_is_none(box):
    page = np.full(mailbox.PAGE_BYTES, 0x7F, np.uint8)
    write(box, page, page.nbytes)
    assert box.read(Receipt) is None


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"prompt":"\xff"}', b'{"other":' + b"[" * 50_000 + b"]" * 50_000 + b"}"],
    ids=["no JSON", "no UTF-8", "too deep"],
)
def test_a_body_that_cannot_be_decoded_is_none(box, body):
    """The thread that reads it serves all other requests, too."""
    header = mailbox._HEADER.pack(len(body), hashlib.sha256(body).digest())
    page = np.frombuffer(header + body, np.uint8)
    write(box, page, page.nbytes)
    assert box.read(Receipt) is None


def test_a_message_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit into a mailbox"):
        mailbox._page_of(Receipt(prompt="x" * mailbox.PAGE_BYTES))
