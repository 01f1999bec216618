"""Checks of a model before it is trained: the certificate of its sites, and what `attach` would change."""
