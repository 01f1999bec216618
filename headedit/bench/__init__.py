"""Methods measured against each other: what they cost, and which heads they recover."""
