"""All SQL of the dataset service."""
