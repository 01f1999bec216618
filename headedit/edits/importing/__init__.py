"""Edits that the published code of JoLA and LoFiT saved."""
