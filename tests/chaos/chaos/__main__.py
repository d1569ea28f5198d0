"""Command line of a run; exit status 1 when something happened that must not."""

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `support`

from chaos.driver import DEFAULTS, carry_out


def main():
    # Ended early by either signal, a run still looks at everything and says how it went.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    for name, default in DEFAULTS.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(default), default=default)
    _, good = carry_out(lambda line: print(line, flush=True), **vars(parser.parse_args()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
