"""Whether a recipe finds heads that were planted, and what it reaches beside other methods."""
