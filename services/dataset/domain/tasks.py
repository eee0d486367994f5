"""Names of the kinds of tasks."""

IMPORT, CLEAN, SPLIT, PROFILE = "dataset.import", "dataset.clean", "dataset.split", "dataset.profile"
WORK_REPORT = "dataset.work_report"
EXPORT = "dataset.export"
AUGMENT = "dataset.augment"
LEAKAGE = "dataset.leakage"
MAKE_DETECTOR, ANNOTATE = "dataset.make_detector", "dataset.annotate"
