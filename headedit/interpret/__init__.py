"""Interpretation of edits: evidence for heads, pictures of gates and runs, and reports."""
