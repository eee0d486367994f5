"""What the gateway asks of other services."""
