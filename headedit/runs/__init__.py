"""What a run leaves behind: its files, history, pruning path and record, and how far several runs agree."""
