"""What a format cannot say: rows left out and rows changed, each with its reason. Nothing is lost in silence."""

from __future__ import annotations

from typing import Any

# Row ids that are named for each reason.
_EXAMPLES = 5
# Reasons may quote what a row has; so many different ones are told apart.
_REASONS = 100
_REASON_CHARACTERS = 300
_MORE = "other reasons"


class Inexpressible(Exception):
    """A row cannot be said in a format, or a record of the format is no row; the message says why, for people."""

    def __init__(self, reason: str) -> None:
        # It may quote what a stranger sent: the database keeps no U+0000, and people read no page.
        super().__init__(reason[:_REASON_CHARACTERS].replace("\x00", "\ufffd"))


class Losses:
    """Counts rows that do not come out as they are."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}
        self.left_out = 0

    def leave_out(self, reason: str, row_id: str) -> None:
        """Counts a row that is not in the files."""
        self.left_out += 1
        self._count(reason, "left_out", row_id)

    def change(self, reason: str, row_id: str) -> None:
        """Counts a row that would not come back as it was."""
        self._count(reason, "changed", row_id)

    def _count(self, reason: str, what: str, row_id: str) -> None:
        if reason not in self._found and len(self._found) >= _REASONS:
            reason = _MORE
        entry = self._found.setdefault(reason, {"reason": reason, "left_out": 0, "changed": 0, "row_ids": []})
        entry[what] += 1
        if len(entry["row_ids"]) < _EXAMPLES:
            entry["row_ids"].append(row_id)

    def report(self) -> list[dict[str, Any]]:
        """Fields of `argosy.dataset.v1.ExportLoss`, the most frequent first."""
        return sorted(self._found.values(), key=lambda entry: -(entry["left_out"] + entry["changed"]))
