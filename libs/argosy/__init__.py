"""The public Python package: client, command line and the generated stubs `argosy.<area>.v1`."""
