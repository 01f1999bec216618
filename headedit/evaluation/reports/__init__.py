"""Reports of evaluations, and tables that compare them."""
