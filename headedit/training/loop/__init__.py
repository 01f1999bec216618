"""The training loop: a Trainer of edits, its objective and schedules, and what it saves."""
