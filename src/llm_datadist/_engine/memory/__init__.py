"""Registered memory: pools, registration with backends, remaps, memory faults."""
