"""Training edits: records, the objective, the trainer, recipes, and ``fit``; import from its modules."""
