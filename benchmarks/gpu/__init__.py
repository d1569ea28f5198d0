"""Figures of GPU memory: this library, bare NIXL, and single copies of the driver."""
