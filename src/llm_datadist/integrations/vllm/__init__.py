"""vLLM connector: disaggregated prefill over llm_datadist on stock vLLM."""
