"""Formats of files that can be imported: rows, and archives of images, sound and films."""

from __future__ import annotations

_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".txt": "text",
    ".text": "text",
    ".zip": "zip",
    ".tar": "tar",
    ".tgz": "tar",
}
# Files may be compressed as a whole.
_COMPRESSED = (".gz", ".zst")
# Archives, whose files become rows; the other formats have rows.
ARCHIVES = ("zip", "tar")
FORMATS = tuple(dict.fromkeys(meant for meant in _ENDINGS.values() if meant not in ARCHIVES))


def format_of(file_name: str) -> str | None:
    """The format that a file name means, or None."""
    name = file_name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return next((meant for ending, meant in _ENDINGS.items() if name.endswith(ending)), None)
