"""The local runner: one machine, nothing installed, `argosy up`."""
