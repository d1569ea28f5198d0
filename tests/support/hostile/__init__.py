"""A peer that follows the protocol until it is linked, and its victims."""
