"""The command line `argosy`."""
