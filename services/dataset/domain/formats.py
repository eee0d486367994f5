"""Formats of files that can be imported."""

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
}
# Files may be compressed as a whole.
_COMPRESSED = (".gz", ".zst")
FORMATS = tuple(dict.fromkeys(_ENDINGS.values()))


def format_of(file_name: str) -> str | None:
    """The format that a file name means, or None."""
    name = file_name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return next((meant for ending, meant in _ENDINGS.items() if name.endswith(ending)), None)
