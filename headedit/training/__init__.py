"""Training of edits: ``fit``, ``train``, configs, recipes and the Trainer; import from the modules."""
