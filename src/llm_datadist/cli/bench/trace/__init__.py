"""Command `llm-datadist bench trace`: replays the requests of a trace between two processes."""
