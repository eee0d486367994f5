"""What an engine hands back about a version that it wrote."""

from __future__ import annotations

from typing import Any

from libs.compute.versions import VersionIndex
from services.dataset.engines.index import Saved

# Examples a rule in a report, and characters of each.
_EXAMPLES = 5
_EXAMPLE_CHARACTERS = 200


def example_text(text: str) -> str:
    """The beginning of a text, without U+0000, which the database of the service cannot keep."""
    return text[:_EXAMPLE_CHARACTERS].replace("\x00", "\ufffd")


class RuleTally:
    """Counts what each rule did and keeps its first examples.

    Args:
        index: The version that is cleaned; examples carry the row ids that its readers know.
    """

    def __init__(self, index: VersionIndex) -> None:
        self._index = index
        self._dropped: dict[str, int] = {}
        self._examples: dict[str, list[dict[str, str]]] = {}
        self.changed: dict[str, int] = {}

    def change(self, rules: list[str]) -> None:
        """Counts a row that these rules changed."""
        for rule in rules:
            self.changed[rule] = self.changed.get(rule, 0) + 1

    def wants_example(self, rule: str) -> bool:
        """Whether another example of the rule will be kept."""
        return len(self._examples.get(rule, ())) < _EXAMPLES

    def drop(self, rule: str, row: int, reason: str, text: str) -> None:
        """Counts a row that the rule dropped."""
        self._dropped[rule] = self._dropped.get(rule, 0) + 1
        if self.wants_example(rule):
            example = {"row_id": self._index.id_of(row), "text": text, "reason": reason}
            self._examples.setdefault(rule, []).append(example)

    def rules(self) -> list[dict[str, Any]]:
        """Fields of `argosy.dataset.v1.RuleReport`, in order of the rules' names."""
        return [
            {
                "rule": rule,
                "dropped": self._dropped.get(rule, 0),
                "changed": self.changed.get(rule, 0),
                "examples": self._examples.get(rule, []),
            }
            for rule in sorted({*self._dropped, *self.changed})
        ]


def version_result(saved: Saved, report: dict[str, Any], new_bytes: int) -> dict[str, Any]:
    """A version as the job's `apply` stores it.

    Args:
        saved: Digests and counts.
        report: Fields of `argosy.dataset.v1.Report`.
        new_bytes: Bytes of rows that no earlier version had.
    """
    return {
        "manifest_digest": saved.manifest_digest,
        "content_digest": saved.content_digest,
        "row_count": saved.row_count,
        "byte_count": saved.byte_count,
        "new_byte_count": new_bytes,
        "columns": saved.columns,
        "report": report,
    }
