"""python -m llm_datadist: the same as the console script llm-datadist."""

from llm_datadist.cli import main

main()
