"""Run a command with its output in a log file; show the log only when the command fails.

Usage: quietly.py LOG COMMAND...
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    log = Path(sys.argv[1])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        status = subprocess.run(
            sys.argv[2:], stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status != 0:
        sys.stderr.write(log.read_text(errors="replace"))
        sys.stderr.write(f"failed with status {status}: {' '.join(sys.argv[2:])}\n")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
