"""Methods against each other: every recipe, the oracle, LoRA and the unedited model behind one interface."""
