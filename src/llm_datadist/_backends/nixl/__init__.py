"""The NIXL data path; imports nothing, as few instances use it."""
