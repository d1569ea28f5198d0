"""Transfers between two instances, and copies within one."""
