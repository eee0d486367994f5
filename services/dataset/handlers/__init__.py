"""One module a resource, one function an RPC."""
