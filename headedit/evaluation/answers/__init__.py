"""What a model answers: by generating text, or by the likelihood of options."""
