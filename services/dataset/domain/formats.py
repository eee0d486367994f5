"""Formats of files that can be imported."""

from __future__ import annotations

_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
}


def format_of(file_name: str) -> str | None:
    """The format that a file name means, or None."""
    return next((name for ending, name in _ENDINGS.items() if file_name.lower().endswith(ending)), None)
