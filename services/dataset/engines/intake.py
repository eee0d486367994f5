"""Lines of a file on their way into a version: rows are added, what is none is counted and named."""

from __future__ import annotations

from typing import Any

from services.dataset.engines.lines import Line
from services.dataset.engines.rows import RowError, split_provenance
from services.dataset.engines.writing import VersionWriter

# Lines that could not be read and are named in the report; the others are counted.
LINE_ERRORS = 100


class Intake:
    """Adds lines to a version.

    Args:
        writer: Of the version.
        file_name: Source of rows that name none.
    """

    def __init__(self, writer: VersionWriter, file_name: str) -> None:
        self._writer = writer
        self._file_name = file_name
        self._errors: list[dict[str, Any]] = []
        self._failed = 0
        self.seen = 0

    def add(self, line: Line, position: int, media: str = "") -> None:
        """Adds a line.

        Args:
            position: Of a row without one of its own.
            media: Digest of the file that the row has; empty: it has none.
        """
        self.seen += 1
        error = line.error
        if line.row is not None:
            try:
                self._writer.add(*split_provenance(line.row, self._file_name, position), media)
            except RowError as reason:
                error = str(reason)
        if error:
            self._failed += 1
            if len(self._errors) < LINE_ERRORS:
                self._errors.append({"line": line.number, "error": error})

    def report(self) -> dict[str, Any]:
        """Fields of `argosy.dataset.v1.Report`."""
        return {
            "rows_in": self.seen,
            "rows_out": len(self._writer),
            "line_errors": self._errors,
            "line_error_count": self._failed,
        }
