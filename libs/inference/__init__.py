"""The data path: how a service reaches the replicas of a deployment, past the control plane."""
