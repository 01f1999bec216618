"""The training loop: a Trainer that learns edits, its objective and schedules, and its checkpoints."""
