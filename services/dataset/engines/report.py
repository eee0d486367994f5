"""What an engine hands back about a version that it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from libs.compute.versions import VersionIndex
from services.dataset.engines.index import Saved
from services.dataset.engines.texts import EXAMPLE_CHARACTERS, EXAMPLES, Change


def example_text(text: str) -> str:
    """The beginning of a text, without U+0000, which the database of the service cannot keep."""
    return text[:EXAMPLE_CHARACTERS].replace("\x00", "\ufffd")


class RuleTally:
    """Counts what each rule did and keeps its first examples.

    Args:
        index: The version that is cleaned; examples carry the row ids that its readers know.
        rules: Names in the order of the report; those that did nothing are in it too.
    """

    def __init__(self, index: VersionIndex, rules: Sequence[str]) -> None:
        self._index = index
        self._rules = rules
        self._dropped: dict[str, int] = {}
        self._examples: dict[str, list[dict[str, str]]] = {}
        self._changes: dict[str, list[dict[str, str]]] = {}
        self.changed: dict[str, int] = {}

    def change(self, rules: list[str]) -> None:
        """Counts a row that these rules changed."""
        for rule in rules:
            self.changed[rule] = self.changed.get(rule, 0) + 1

    def show_changes(self, rule: str, first_row: int, changes: Iterable[Change]) -> None:
        """Keeps the first changes of a rule; their numbers count from `first_row`."""
        kept = self._changes.setdefault(rule, [])
        for change in changes:
            if len(kept) == EXAMPLES:
                return
            row_id = self._index.id_of(first_row + change.at)
            kept.append({"row_id": row_id, "before": change.before, "after": change.after})

    def wants_example(self, rule: str) -> bool:
        """Whether another example of the rule will be kept."""
        return len(self._examples.get(rule, ())) < EXAMPLES

    def drop(self, rule: str, row: int, reason: str, text: str) -> None:
        """Counts a row that the rule dropped."""
        self._dropped[rule] = self._dropped.get(rule, 0) + 1
        if self.wants_example(rule):
            example = {"row_id": self._index.id_of(row), "text": text, "reason": reason}
            self._examples.setdefault(rule, []).append(example)

    def rules(self) -> list[dict[str, Any]]:
        """Fields of `argosy.dataset.v1.RuleReport`, in the order in which the rules were given."""
        return [
            {
                "rule": rule,
                "dropped": self._dropped.get(rule, 0),
                "changed": self.changed.get(rule, 0),
                "examples": self._examples.get(rule, []),
                "changed_examples": self._changes.get(rule, []),
            }
            for rule in dict.fromkeys([*self._rules, *sorted(self._dropped)])
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
