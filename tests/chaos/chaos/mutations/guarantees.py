"""Guarantees taken away, one by one: what a suite that holds them has to notice.

Each mutation replaces text that occurs exactly once in a file. `tests/chaos/test_mutations.py`
checks that all still apply; `make mutants` builds each and expects that what it names fails.
"""

from typing import NamedTuple


class Edit(NamedTuple):
    """In a file, this text for that one."""

    path: str
    old: str
    new: str


class Mutation(NamedTuple):
    """One guarantee less.

    Attributes:
        name: For the command line.
        lost: What does not hold any more.
        edits: How it is taken away.
        chaos: Options of a chaos run that must fail; None: `tests` must.
        tests: Arguments of pytest.
    """

    name: str
    lost: str
    edits: tuple[Edit, ...]
    chaos: dict | None = None
    tests: tuple[str, ...] = ()

    @property
    def is_native(self):
        return any(edit.path.startswith("native/") for edit in self.edits)


_CALM = {"disaster_s": 0.0, "unlinks": 0.0, "processes": 3}
_CONFORMANCE = "tests/conformance/test_backends.py"
_LANES = "src/llm_datadist/_backends/lanes.py"


def _checks(*names):
    return (_CONFORMANCE, "-k", " or ".join(names))


MUTATIONS = (
    Mutation(
        "guards-after-read",
        "a same-host read checks the owner's guards after the last byte",
        (
            Edit(
                "native/host/read.cc",
                "const Outcome after = guards();",
                "const Outcome after;",
            ),
        ),
        tests=("tests/native/host/test_host_read.py", "-k", "uses_the_memory_again"),
    ),
    Mutation(
        "guards-before-and-after-read",
        "a same-host read checks the owner's guards at all",
        (
            Edit(
                "native/host/read.cc",
                "return live ? Outcome{} : Outcome::failure(Code::kGone);",
                "return live || true ? Outcome{} : Outcome::failure(Code::kGone);",
            ),
        ),
        chaos={**_CALM, "backend": "auto"},
    ),
    Mutation(
        "link-guard",
        "a same-host read ends with the peer's end of the link",
        (
            Edit(
                "native/host/read.cc",
                "view.live(checks_.link) && view.live(checks_.cache)",
                "view.live(checks_.cache)",
            ),
        ),
        tests=("tests/native/host/test_host_read.py", "-k", "guards_of_the_peer"),
    ),
    Mutation(
        "served-entry",
        "the server holds the cache's entry while it sends or receives",
        (
            Edit(
                "native/lanes/target/rights.cc",
                "if (!uses.emplace_back(entry, value)) {",
                "if (uses.emplace_back(entry, value); false) {",
            ),
        ),
        chaos={**_CALM, "backend": "tcp"},
    ),
    Mutation(
        "unregister-waits",
        "closing an entry waits for those that touch its memory",
        (
            Edit(
                "native/memory/entries.cc",
                "while (entry->users_.load(std::memory_order_seq_cst) != 0) {",
                "while (false) {",
            ),
        ),
        tests=("tests/native/host/test_host_read.py", "-k", "once_its_close_has_returned"),
    ),
    Mutation(
        "unregister-closes",
        "unregistering a cache closes its entry",
        (
            Edit(
                "src/llm_datadist/_registry/caches.py",
                "self._node.close_entry(*local.ref)",
                "pass",
            ),
        ),
        chaos={**_CALM},
    ),
    Mutation(
        "ack-before-apply",
        "a push that returned has been applied",
        (
            Edit(
                _LANES,
                "        return self._write(self._client.write, transfer)",
                """        call = self._client.write, transfer
        threading.Thread(target=self._write, args=call, daemon=True).start()
        return Outcome(Code.OK, 0, -1, int(transfer.length.sum()))""",
            ),
        ),
        chaos={**_CALM, "backend": "tcp"},
    ),
    Mutation(
        "apply-after-deadline",
        "nothing is applied after the deadline, or for an initiator that has given up",
        (
            Edit(
                "native/lanes/target/rights.cc", "if (now_ns() >= deadline_ns_) {", "if (false) {"
            ),
            Edit("native/lanes/target/rights.cc", "if (now_ns() >= deadline_ns) {", "if (false) {"),
            Edit(
                "native/lanes/target/serve_read_write.cc",
                "&& socket_.hung_up()) {",
                "&& false) {",
            ),
            Edit(
                "native/lanes/target/served_lane.cc",
                "if ((events & kHangUp) != 0) {",
                "if (false) {",
            ),
            Edit(
                "native/lanes/target/serve_push.cc",
                "return cancelled_.load() || socket_.hung_up() ?",
                "return false ?",
            ),
            Edit(
                "native/host/read.cc",
                "if (now_ns() >= checks_.deadline_ns) {",
                "if (false) {",
            ),
        ),
        chaos={"disaster_s": 0.5, "processes": 3, "seconds": 120.0},
    ),
    Mutation(
        "range-check",
        "the server refuses ranges outside the cache that a request names",
        (
            Edit(
                "native/lanes/target/rights.cc",
                "if (!entry->contains(addresses[i], lengths[i])) {",
                "if (false) {",
            ),
        ),
        tests=_checks("writes_outside_registered_memory"),
    ),
    Mutation(
        "stale-directory",
        "a transfer on condition of a directory version is refused when that has moved on",
        (
            Edit(
                "native/lanes/target/rights.cc",
                "request.version != 0 && request.version != node.view().version()",
                "false",
            ),
        ),
        tests=_checks("stale_directory"),
    ),
    Mutation(
        "remap-drops-mappings",
        "peers drop what they hold of a pool whose pages were replaced",
        (
            Edit(
                "src/llm_datadist/_backends/host.py",
                "if segment.address < address + size and address < segment.address + segment.size:",
                "if False:",
            ),
            Edit(
                "src/llm_datadist/_engine/memory/remap.py",
                "channel.forget(address, size)",
                "pass",
            ),
        ),
        chaos={**_CALM, "backend": "auto"},
    ),
    Mutation(
        "remap-changes-generation",
        "a remapped cache has another guard value, so that what was resolved before fails",
        (
            Edit(
                "native/memory/published.cc",
                "return guard_word(index).fetch_add(1, std::memory_order_seq_cst) + 1;",
                "return guard_word(index).fetch_sub(1, std::memory_order_seq_cst) - 1;",
            ),
        ),
        tests=_checks("remote_remapped"),
    ),
    Mutation(
        "consume-checked",
        "a CacheKey is pulled by one puller only",
        (
            Edit(
                "src/llm_datadist/_engine/transfer/attempt.py",
                "outcome = data.lanes.consume(found.key_ref, request.deadline_ns)",
                "data.lanes.consume(found.key_ref, request.deadline_ns)",
            ),
        ),
        chaos={**_CALM, "seconds": 120.0, "takes": 20},
    ),
    Mutation(
        "own-entry",
        "a pull ends when the puller's own cache is unregistered",
        (
            Edit(
                "native/host/read.cc",
                "local_gone = checks_.local.named() && !writing;",
                "local_gone = checks_.local.named() && !writing && false;",
            ),
        ),
        tests=_checks("local_unregistered"),
    ),
    Mutation(
        "short-success",
        "a data path that moved less than planned has not succeeded",
        (
            Edit(
                "src/llm_datadist/_engine/transfer/errors.py",
                "if outcome.code == Code.OK and outcome.moved_bytes != plan.total_bytes:",
                "if False:",
            ),
        ),
        tests=("tests/faults/test_policy.py", "-k", "test_every_fault"),
    ),
    Mutation(
        "notice-believed",
        "an owner marks what it cannot read itself, and nothing on a peer's word",
        (
            Edit(
                "src/llm_datadist/_engine/memory/fault_notices.py",
                "for piece, good in zip(part, readable, strict=False) if not good]",
                "for piece, good in zip(part, readable, strict=False)]",
            ),
        ),
        tests=("tests/integration/test_notices.py", "-k", "a_lie_marks_nothing"),
    ),
    Mutation(
        "notices-without-end",
        "a peer has a limited part of the owner's memory looked at",
        (
            Edit(
                "src/llm_datadist/_engine/memory/fault_notices.py",
                "if ranges > MAX_RANGES or num_bytes > MAX_BYTES:",
                "if False:",
            ),
        ),
        tests=("tests/unit/_engine/memory/test_fault_notices.py", "-k", "in_a_second"),
    ),
    Mutation(
        "messages-without-caps",
        "what no correct peer says ends its link",
        (
            Edit(
                "src/llm_datadist/_links/lifecycle.py",
                "except ProtocolError:\n            raise",
                "except ProtocolError:\n            return None",
            ),
        ),
        tests=("tests/faults/test_hostile_peers.py", "-k", "no_peer_can_say"),
    ),
    Mutation(
        "raw-texts",
        "texts of others are printable wherever they come out",
        (
            Edit(
                "src/llm_datadist/_protocol/texts.py",
                "if not text.isprintable():",
                "if False:",
            ),
        ),
        tests=("tests/integration/links/test_texts.py",),
    ),
    Mutation(
        "no-tags",
        "frames of others than the lane's two ends do nothing",
        (
            Edit(
                "native/wire/tags.cc",
                "return differing == std::byte{0};",
                "return differing == std::byte{0} || true;",
            ),
        ),
        tests=("tests/native/lanes/test_tags.py",),
    ),
    Mutation(
        "own-clock",
        "a target looks at its own clock, however long a request was under way",
        (
            Edit(
                "native/lanes/target/served_lane.cc",
                "if ((header.flags & wire::kTargetsClock) == 0) {",
                "if (true) {",
            ),
        ),
        tests=("tests/native/lanes/test_clocks.py",),
    ),
    Mutation(
        "odd-replies",
        "an outcome that no target can have met is a protocol error",
        (
            Edit(
                "native/lanes/replies.cc",
                "if (!repeats && !codes_of(kind).has(outcome.code)) {",
                "if (false) {",
            ),
        ),
        tests=("tests/native/lanes/test_replies.py",),
    ),
    Mutation(
        "dialed-through-others",
        "an instance links to itself only where nothing is in between",
        (
            Edit(
                "src/llm_datadist/_links/acceptor.py",
                "if dial.source != self._incoming.peer:",
                "if False:",
            ),
        ),
        tests=("tests/faults/test_relays.py", "-k", "not_linked_to_itself"),
    ),
    Mutation(
        "no-proof-of-link",
        "a peer's process is the one that shows the proof of the link",
        (
            Edit(
                "native/host/peer.cc",
                "return shown == address_.proof ? Outcome{} : Outcome::failure(Code::kPeerDead);",
                "return {};",
            ),
            Edit(
                "native/host/read.cc",
                "if (shown != peer_.address_.proof) {",
                "if (shown != peer_.address_.proof && false) {",
            ),
        ),
        tests=("tests/hostile/test_leaks.py", "-k", "describes_the_victim or name_of_a_third"),
    ),
    Mutation(
        "page-of-any-reader",
        "a process owns the page that it names, and does not merely read it",
        (
            Edit(
                "native/host/remote_file.cc",
                "mapped.shared && (mapped.writable || !writable);",
                "mapped.shared && (mapped.writable || !writable || true);",
            ),
        ),
        tests=("tests/native/host/test_host_read.py", "-k", "who_only_reads"),
    ),
    Mutation(
        "doorbells-anywhere",
        "a doorbell reaches bytes of the initiator's entry only",
        (
            Edit(
                "native/lanes/target/serve_push.cc",
                "if (!any_contains(ranges, sources[i], lengths[i])) {",
                "if (!any_contains(ranges, sources[i], lengths[i]) && false) {",
            ),
        ),
        tests=("tests/native/lanes/test_doorbells.py",),
    ),
    Mutation(
        "consumes-anything",
        "CONSUME takes guards of keys only",
        (
            Edit(
                "native/memory/node.cc",
                "(!keys_.contains(key.index) || !published_.kill_guard(key)) {\n"
                "    return false;\n  }\n  consumed_",
                "(!published_.kill_guard(key)) {\n    return false;\n  }\n  consumed_",
            ),
        ),
        tests=("tests/hostile/test_forged.py", "-k", "consume"),
    ),
    Mutation(
        "ranges-without-end",
        "what a peer's page says that there is costs no more than the most that one can list",
        (
            Edit(
                "native/memory/published.cc",
                " || count > kMostRanges) {\n    return {};",
                ") {\n    return {};",
            ),
        ),
        tests=("tests/hostile/test_forged.py", "-k", "very_many_ranges"),
    ),
    Mutation(
        "absent-pages-waited-for",
        "pages that are absent are not read from another process",
        (
            Edit(
                "native/host/read.cc",
                "peer_.proof_present() && peer_.presence_.all_present({stretches, joined});",
                "peer_.presence_.all_present({stretches, joined}) || true;",
            ),
        ),
        tests=("tests/native/host/test_host_read.py", "-k", "absent_pages"),
    ),
    Mutation(
        "control-messages-of-anybody",
        "a control message after the handshake is the peer's",
        (
            Edit(
                "src/llm_datadist/_protocol/control_tags.py",
                "if not hmac.compare_digest(tag, expected):",
                "if not hmac.compare_digest(tag, expected) and False:",
            ),
        ),
        tests=("tests/faults/test_hostile.py", "-k", "put_into_a_control_connection"),
    ),
)
BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}
