"""Lines of JSON on their way into calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from argosy.cli import session

# What a call takes.
BATCH_ROWS, _BATCH_BYTES = 1_000, 2 << 20


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, one a line; `-` is standard input. Raises Misuse, naming the line that is none."""
    try:
        with sys.stdin if file == Path("-") else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _object(line, f"{file}, line {number}")
    except OSError as error:
        raise session.Misuse(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise session.Misuse(f"{file}: is not UTF-8") from None


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise session.Misuse(f"{place}: {error}") from None
    if not isinstance(given, dict):
        raise session.Misuse(f"{place}: is no JSON object")
    return given


def batches(items: Iterable[dict[str, Any]], most: int = BATCH_ROWS) -> Iterator[list[dict[str, Any]]]:
    """Items for one call each: at most `most`, and about 2 MiB."""
    batch: list[dict[str, Any]] = []
    size = 0
    for item in items:
        length = len(json.dumps(item))
        if batch and (len(batch) == most or size + length > _BATCH_BYTES):
            yield batch
            batch, size = list[dict[str, Any]](), 0
        batch.append(item)
        size += length
    if batch:
        yield batch
