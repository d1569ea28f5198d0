"""Command line `llm-datadist`."""


def main() -> None:
    """Entry point of the console script."""
    # The demo's worker processes import this package too and need no command line.
    from llm_datadist.cli.app import app  # noqa: PLC0415

    app()
