"""Evidence for heads: estimates, effects, probes and tokens, one row per head."""
