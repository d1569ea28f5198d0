"""Processes that link, register, pull, push, remap, die, freeze and are cut off, at random.

    python -m chaos --seconds 60 --seed 1      # from tests/chaos; `make chaos ARGS="..."` does it

One seed gives every process its plan and the driver its disasters. Every word of memory tells whose
it is and of which generation, so that each call that succeeds is checked for exact bytes, and each
that fails for a status that the API allows there, for its time, and for quiet afterwards. See
docs/testing.md.
"""
