"""Pictures of the benches: what edits cost, which heads are recovered, and how methods compare."""
