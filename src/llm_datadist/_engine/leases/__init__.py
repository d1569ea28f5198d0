"""Leases: a reader asks the owner of a cache to keep blocks as they are for a while."""
