"""Scheduler side: decides which requests are transferred and orders the workers to do it."""
