"""What edits cost in an engine that serves them."""
