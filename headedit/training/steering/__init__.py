"""Starting values without training: directions between two sets of examples, written into edits."""
