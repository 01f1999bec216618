"""Files, YAML, strict settings, tables and optional libraries."""
