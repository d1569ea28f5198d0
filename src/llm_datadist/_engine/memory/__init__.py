"""Registered memory: backends that must know of it, remaps, memory at fault."""
