"""gRPC as Argosy speaks it: bound handlers, one named interceptor chain, clients with deadlines and retries."""
