"""Bugs of request ids, spans, and what the vLLM connector counts."""

from chaos.mutation import Mutation

_ATTEMPT = "src/llm_datadist/_engine/transfer/attempt.py"
_TRACING = "src/llm_datadist/_tracing.py"
_VLLM = "src/llm_datadist/integrations/vllm"
_TESTS = "tests/unit/integrations/vllm"

MUTATIONS = (
    Mutation(
        "errors-without-their-request",
        "the error of a transfer names the request",
        _ATTEMPT,
        "            name_request(error, request.trace.request_id)\n",
        "            pass\n",
        tests="tests/unit/_engine/transfer/test_attempt_requests.py",
    ),
    Mutation(
        "failures-without-a-span",
        "a transfer that failed has a span too",
        _ATTEMPT,
        "            transfer = EndedTransfer(*where, 0, duration_ns, error)\n"
        "            self._notices.end(request.trace, link, transfer)\n",
        "            pass\n",
        tests="tests/unit/_engine/transfer/test_attempt_requests.py",
    ),
    Mutation(
        "spans-of-the-ending-thread",
        "a span belongs to the trace of the call, on whatever thread the transfer ends",
        _TRACING,
        "api.SpanKind.CLIENT, self._parent, attributes",
        "api.SpanKind.CLIENT, _context(), attributes",
        tests="tests/unit/test_tracing.py",
    ),
    Mutation(
        "failing-processors-fail-transfers",
        "an error in the program's tracing does not fail a transfer",
        _TRACING,
        "    except Exception:  # of the program's own samplers and processors\n",
        "    except ImportError:\n",
        tests="tests/unit/test_tracing.py",
    ),
    Mutation(
        "aborted-requests-are-recomputed",
        "a request that was aborted does not count as recomputed",
        f"{_VLLM}/worker/pull_consumer.py",
        "        if missing and not abandoned.is_set():\n",
        "        if missing:\n",
        tests=f"{_TESTS}/worker/test_pull_consumer.py",
    ),
    Mutation(
        "gauges-show-the-last-change",
        "a gauge shows the sum of the changes",
        f"{_VLLM}/vllm_metrics.py",
        "self._gauges.get((name, engine), 0) + value",
        "value",
        tests=f"{_TESTS}/test_vllm_metrics.py",
    ),
)
