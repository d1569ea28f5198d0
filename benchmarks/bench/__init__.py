"""Benchmarks of llm-datadist beside its rivals and the limits of the machine.

Run `python -m bench --help` from the folder `benchmarks`. Never imported by tests.
"""
