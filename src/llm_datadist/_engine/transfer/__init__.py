"""Transfers between two instances, copies within one."""
