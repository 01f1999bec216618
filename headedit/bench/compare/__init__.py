"""Methods against each other behind one interface: our recipes, the oracle, peers and the unedited model."""
