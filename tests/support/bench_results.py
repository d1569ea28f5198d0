"""Made-up results of `llm-datadist bench`."""

from llm_datadist.cli.bench.results import Result


def result(**changes):
    """Return a pull of 4 KiB blocks over TCP, with what is changed."""
    usual = {
        "path": "tcp",
        "operation": "pull",
        "kind": "blocks",
        "contender": "llm-datadist (tcp)",
        "block_bytes": 4096,
        "num_blocks": 256,
        "num_tensors": 1,
        "total_bytes": 1 << 20,
        "gbps": [2.0],
    }
    made = Result(**(usual | changes))
    made.settle()
    return made
