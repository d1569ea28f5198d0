"""Bugs of handshakes: strangers, proofs and keys, what messages are accepted."""

from chaos.mutation import Edit, Mutation

_LINKS = "src/llm_datadist/_links"
_CONTROL = "src/llm_datadist/_control"
_PROTOCOL = "src/llm_datadist/_protocol"
_TESTS = "tests/unit/_links"

MUTATIONS = (
    Mutation(
        "strangers-stay",
        "a connection that does not prove itself in time is closed",
        f"{_CONTROL}/listener.py",
        "self._timer = asyncio.get_running_loop().call_later(seconds, self.refuse, reason)",
        "del reason",
        tests=f"{_TESTS} tests/unit/_control",
    ),
    Mutation(
        "set-up-without-end",
        "an authenticated peer that stalls does not keep a set-up for ever",
        f"{_LINKS}/acceptor.py",
        "await Deadline(_SETUP_SECONDS).limit(_Inbound(context, lifecycle, incoming, stream).run())",
        "await _Inbound(context, lifecycle, incoming, stream).run()",
        tests=_TESTS,
    ),
    Mutation(
        "strangers-without-limit",
        "a limited number of connections is unauthenticated",
        f"{_CONTROL}/listener.py",
        "if len(self._unauthenticated) >= limit:",
        "if False:",
        tests=f"{_TESTS} tests/unit/_control",
    ),
    Mutation(
        "proofs-without-direction",
        "the proof of one end is no proof of the other",
        f"{_PROTOCOL}/handshake.py",
        'return self._keyed(sender.value.encode(), encode_message(replace(message, mac=b"")))',
        'return self._keyed(b"", encode_message(replace(message, mac=b"")))',
        tests="tests/unit/_protocol/test_handshake.py",
    ),
    Mutation(
        "proofs-without-history",
        "a proof covers all messages before it",
        f"{_PROTOCOL}/handshake.py",
        'self._transcript.update(len(body).to_bytes(4, "little") + body)',
        "self._transcript.update(type(message).__name__.encode())",
        tests="tests/unit/_protocol/test_handshake.py",
    ),
    Mutation(
        "proofs-unchecked",
        "a peer without the secret is refused",
        f"{_PROTOCOL}/handshake.py",
        "if not hmac.compare_digest(message.mac, expected):",
        "if message.mac == b'' and expected != b'':",
        tests="tests/unit/_protocol/test_handshake.py",
    ),
    Mutation(
        "page-proofs-alike",
        "each end of a link shows a proof of its own",
        f"{_PROTOCOL}/handshake.py",
        'self._keyed(b"page of the " + side.value.encode(), b"")[:16]',
        'self._keyed(b"page of an end", b"")[:16]',
        tests="tests/unit/_protocol/test_handshake.py",
    ),
    Mutation(
        "control-keys-alike",
        "a control message cannot be reflected to its sender",
        f"{_PROTOCOL}/handshake.py",
        'self._keyed(b"messages of the " + side.value.encode(), b"")',
        'self._keyed(b"messages" * bool(side), b"")',
        tests="tests/unit/_protocol/test_handshake.py",
    ),
    Mutation(
        "control-messages-replayed",
        "a control message counts once",
        f"{_PROTOCOL}/control_tags.py",
        "        self._num_received += 1\n",
        "",
        tests="tests/unit/_protocol/test_control_tags.py",
        more=(Edit(f"{_PROTOCOL}/control_tags.py", "        self._num_sent += 1\n", ""),),
    ),
    Mutation(
        "lane-proofs-alike",
        "the proof of a lane's acceptor is no proof of its dialer",
        f"{_PROTOCOL}/lane_auth.py",
        'return clock + _mac(key, b"lane " + side.value.encode(), hello, nonce + clock)',
        'return clock + _mac(key, b"lane " * bool(side), hello, nonce + clock)',
        tests="tests/unit/_protocol/test_lane_auth.py",
        more=(
            Edit(
                f"{_PROTOCOL}/lane_auth.py",
                'expected = _mac(key, b"lane " + side.value.encode(), hello, nonce + clock)',
                'expected = _mac(key, b"lane " * bool(side), hello, nonce + clock)',
            ),
        ),
    ),
    Mutation(
        "lane-proofs-without-hello",
        "the proof of a lane covers its place",
        f"{_PROTOCOL}/lane_auth.py",
        'return hmac.digest(key, label + b"\\0" + hello.pack() + rest, "sha256")',
        'return hmac.digest(key, label + b"\\0" + hello.nonce + rest, "sha256")',
        tests="tests/unit/_protocol/test_lane_auth.py",
    ),
    Mutation(
        "lane-keys-alike",
        "the two directions of a lane have keys of their own",
        f"{_PROTOCOL}/lane_auth.py",
        "return LaneKeys(send=of[side], receive=of[side.other])",
        "return LaneKeys(send=of[side], receive=of[side])",
        tests="tests/unit/_protocol/test_lane_auth.py",
    ),
    Mutation(
        "lane-keys-of-the-session",
        "each lane has keys of its own",
        f"{_PROTOCOL}/lane_auth.py",
        'sender: _mac(key, b"tags of the " + sender.value.encode(), hello, nonce)[:_TAG_KEY_BYTES]',
        'sender: hmac.digest(key, b"tags of the " + sender.value.encode() + nonce[:0], "sha256")'
        "[:_TAG_KEY_BYTES]",
        tests="tests/unit/_protocol/test_lane_auth.py",
    ),
    Mutation(
        "absurd-clocks",
        "a clock that no machine can have is refused",
        f"{_PROTOCOL}/lane_auth.py",
        "    if clock_ns > _MOST_CLOCK:\n",
        "    if False:\n",
        tests="tests/unit/_protocol/test_lane_auth.py",
    ),
    Mutation(
        "greetings-of-any-size",
        "frames of strangers are small",
        f"{_CONTROL}/connection.py",
        "self._limit = MAX_GREETING_BYTES",
        "self._limit = MAX_FRAME_BYTES",
        tests="tests/unit/_control",
    ),
    Mutation(
        "frames-of-any-size",
        "a frame has a limited size",
        f"{_PROTOCOL}/codec.py",
        "    if not 0 < length <= limit:\n",
        "    if not 0 < length:\n",
        tests="tests/unit/_protocol",
    ),
    Mutation(
        "messages-out-of-turn",
        "a message in the wrong phase ends the handshake",
        f"{_PROTOCOL}/handshake.py",
        "        if sender not in senders:\n",
        "        if not senders:\n",
        tests="tests/unit/_protocol/test_handshake.py",
    ),
)
