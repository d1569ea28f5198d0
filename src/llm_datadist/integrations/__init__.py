"""Connectors for serving engines. Each imports its engine only when it is used itself."""
