"""Demo: a prefill and a decode process serve a small model, checked against one process."""
