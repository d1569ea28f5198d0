"""Worker side: owns an llm_datadist instance over the KV memory and carries out the orders."""
