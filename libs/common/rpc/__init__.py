"""gRPC as Argosy speaks it: handlers bound from descriptors, one named interceptor chain, clients with deadlines and retries."""
