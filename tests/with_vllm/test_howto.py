"""The commands of docs/howto/vllm.md, in its terminals, with a tiny model and free ports."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from support.pages import ROOT, Page

PAGE = Page(ROOT / "docs" / "howto" / "vllm.md")
COMMANDS = {block.title: block.text for block in PAGE.blocks if block.by}
START_S = 400
ASK_S = 120


@pytest.fixture(scope="module")
def named_model(model, tmp_path_factory):
    """The tiny model with a tokenizer, as servers of text need one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("named")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    words = {word: number for number, word in enumerate(["<unk>", *map(str, range(996))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ports():
    """A free port for each one of the page."""
    with contextlib.ExitStack() as stack:
        return {
            port: str(stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1])
            for port in ("8000", "8100", "8200")
        }


@pytest.fixture(scope="module")
def script(named_model, ports):
    """Turn commands of a terminal into those of this machine."""
    activate, model, binding = COMMANDS["in every terminal"].splitlines()
    assert activate == ". .venv-vllm/bin/activate"
    assert model.startswith("export MODEL=")
    here = f"PATH={Path(sys.executable).parent}:$PATH\nexport MODEL={named_model}\n{binding}\n"

    def made(title):
        text = COMMANDS[title]
        for port, free in ports.items():
            text = text.replace(port, free)
        return here + text

    return made


@contextlib.contextmanager
def terminal(text):
    """Run commands until the end of the context."""
    environ = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-e", "-c", text]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def output_of(text):
    done = subprocess.run(
        ["bash", "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=ASK_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until_healthy(url, process):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{url}: ended with {process.returncode}"
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/health", timeout=5) as got,
        ):
            answer = got.read()
            if b"[]" not in answer:  # the router's answer has its healthy servers
                return
        time.sleep(0.5)
    raise AssertionError(f"{url} is not healthy after {START_S} s")


def test_the_page(script, ports):
    """Two engines on one machine, the router, a request that is transferred, and the figures."""
    router, prefill, decode = (f"http://127.0.0.1:{port}" for port in ports.values())
    with (
        terminal(script("terminal 1: the producer")) as one,
        terminal(script("terminal 2: the consumer")) as two,
    ):
        until_healthy(prefill, one)
        until_healthy(decode, two)
        with terminal(script("terminal 3: the router")) as three:
            until_healthy(router, three)
            answer = json.loads(output_of(script("terminal 4: a request")))
            assert answer["usage"]["completion_tokens"] > 0
            figures = output_of(script(""))
    fetched = [line for line in figures.splitlines() if "requests_fetched_total" in line]
    assert [float(line.rpartition(" ")[2]) for line in fetched] == [1.0], figures
