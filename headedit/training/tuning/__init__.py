"""Tuning with PEFT's adapters, of all layers at each step or of those that IST or RST draws."""
