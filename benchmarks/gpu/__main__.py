"""Measure GPU memory: python -m gpu --json FILE [--quick]; in the directory benchmarks."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from gpu import cases, nixl
from gpu.memory import Gpu
from gpu.report import Report

MIB = 1 << 20
CASES = (
    (cases.blocks_between_gpus, 512),
    (nixl.blocks, 512),
    (cases.swaps, 1024),
    (cases.lanes, 512),
    (cases.host_from_gpu, 512),
    (cases.beside_a_model, 512),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=150, help="no case begins later")
    parser.add_argument("--quick", action="store_true", help="1 MiB and one round of each")
    options = parser.parse_args()
    gpu = Gpu()
    report = Report(gpu.facts() | {"date": time.strftime("%Y-%m-%d"), "quick": options.quick})
    ends = time.monotonic() + options.seconds
    print("| case | figure | goal |\n|---|---|---|")
    for case, mib in CASES:
        name = case.__doc__.split(",")[0].splitlines()[0]
        if time.monotonic() > ends:
            report.leave_out(name, "no time was left")
            continue
        try:
            size, rounds = (MIB, 1) if options.quick else (mib * MIB, 5)
            case(gpu, report, size, rounds)
        except Exception as error:
            report.leave_out(name, f"failed: {error}")
        report.write(options.json)  # in case that the next one does not end
    report.beside_nixl()
    report.write(options.json)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
