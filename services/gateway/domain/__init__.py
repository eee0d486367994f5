"""Rules of the gateway without any input or output."""
