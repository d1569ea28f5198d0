"""The NIXL data path."""
