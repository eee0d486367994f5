"""What a dataset, a version and an upload are, and what may be done with them."""
