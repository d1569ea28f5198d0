"""LLM-DataDist for any Linux machine: moves KV caches between prefill and decode processes."""
