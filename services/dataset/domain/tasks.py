"""Names of the kinds of tasks."""

IMPORT, CLEAN, SPLIT = "dataset.import", "dataset.clean", "dataset.split"
