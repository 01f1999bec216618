"""Peers of head edits: other ways to adapt a model by few parameters, behind one interface."""
