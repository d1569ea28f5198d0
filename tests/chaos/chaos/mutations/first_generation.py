"""Bugs of the first generation's mode."""

from chaos.mutation import Mutation

_SRC = "src/llm_datadist"
_MANAGER = f"{_SRC}/_kv_cache_manager"
_TESTS = "tests/integration/first_generation"

MUTATIONS = (
    Mutation(
        "decoder-sets-keys",
        "keys are set and removed on PROMPT only",
        f"{_MANAGER}/roles.py",
        "        if self.role is LLMRole.DECODER:\n",
        "        if False:\n",
        tests="tests/unit/_kv_cache_manager/test_roles.py",
    ),
    Mutation(
        "prompt-pulls",
        "pulls are made on DECODER only",
        f"{_MANAGER}/roles.py",
        "        if self.role is LLMRole.PROMPT:\n",
        "        if False:\n",
        tests="tests/unit/_kv_cache_manager/test_roles.py",
    ),
    Mutation(
        "last-reference-holds",
        "dropping the last reference drops the hold of the id",
        f"{_MANAGER}/holds.py",
        "        weakref.finalize(given, _drop, weakref.ref(self), cache).atexit = False\n",
        "",
        tests="tests/unit/_kv_cache_manager/test_holds.py",
    ),
    Mutation(
        "holds-end-under-locks",
        "a cache that is garbage collected in library code is freed by a worker",
        f"{_MANAGER}/holds.py",
        "        if _may_have_locks(sys._getframe(1)):\n",
        "        if False:\n",
        tests="tests/unit/_kv_cache_manager/test_holds.py",
    ),
    Mutation(
        "views-of-freed-memory",
        "an array over a cache keeps it",
        f"{_SRC}/_types/cache.py",
        "        self._cache = cache\n        self.__array_interface__",
        "        self.__array_interface__",
        tests=f"{_TESTS}/test_allocation.py -k views",
    ),
    Mutation(
        "dials-once",
        "a peer that does not listen yet is dialed again until the timeout",
        f"{_SRC}/_links/requests.py",
        "outcome.answered or not self._context.first_generation:",
        "True:",
        tests=f"{_TESTS}/test_links.py -k does_not_listen_yet",
    ),
    Mutation(
        "generations-link",
        "a peer of the other generation is refused",
        f"{_SRC}/_links/admission.py",
        "    elif (hello.first_generation is True) is not context.first_generation:\n",
        "    elif False:\n",
        tests="tests/unit/_links/test_admission.py",
    ),
    Mutation(
        "offset-of-the-other-side",
        "src_cache_offset counts in the peer's slot, dst_cache_offset in the local one",
        f"{_SRC}/_engine/transfer/calls.py",
        "slot, size, dst_offset, src_offset)",
        "slot, size, src_offset, dst_offset)",
        tests=f"{_TESTS}/test_keys_and_pulls.py -k offsets",
    ),
    Mutation(
        "bf16-is-cut-off",
        "numbers are rounded to bf16",
        f"{_SRC}/_types/tensor.py",
        "bits + to_even)",
        "bits)",
        tests="tests/unit/_types/test_tensor.py",
    ),
)
