"""What a run leaves behind: its history, its pruning path, its record, and how far several runs agree."""
