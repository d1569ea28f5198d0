"""Command `llm-datadist doctor`: finds out what this machine lets instances do, and what not.

One module for each subject; `checks` calls them in order. None imports an instance's parts before
it needs them, and programs that may crash (drivers, NIXL) run in a process of their own.
"""
