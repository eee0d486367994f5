"""What the handlers use of the outside: the rows in the blob store."""
