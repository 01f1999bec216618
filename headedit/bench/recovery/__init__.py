"""Recovery of planted heads: whether a recipe finds the heads that labels were made with."""
