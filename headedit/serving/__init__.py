"""Engines that serve edits, another for each request."""
