"""Tasks: their records, prompts and options."""
