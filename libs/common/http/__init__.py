"""HTTP that leaves the mesh: links that people give, and the client that follows them."""
