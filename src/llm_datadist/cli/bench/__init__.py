"""Command `llm-datadist bench`: rates of this machine, or of the way between two hosts.

A contender moves cases between two processes. Drivers give contenders turns, one at a time. The
programs of the folder `benchmarks` of the source tree use these modules too.
"""
