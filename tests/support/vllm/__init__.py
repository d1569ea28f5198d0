"""Engines, workers and stand-ins for the tests of the vLLM connector."""
