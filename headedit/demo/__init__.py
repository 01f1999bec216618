"""The embedded model, the script that trained it, and the demo run over it."""
