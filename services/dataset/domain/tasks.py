"""Names of the kinds of tasks."""

IMPORT, CLEAN, SPLIT, PROFILE = "dataset.import", "dataset.clean", "dataset.split", "dataset.profile"
AUGMENT = "dataset.augment"
