"""Leases: the owner of a cache knows which of its blocks peers still want to read."""
