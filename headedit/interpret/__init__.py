"""Looking at edits: pictures of gates and of runs, what edits say, and evidence for heads."""
