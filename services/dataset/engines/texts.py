"""A few hundred texts, and the rows that they belong to, on their way through the steps of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from libs.compute.versions import STRING, Row, to_json
from services.dataset.engines.word_table import WordTable, word_table

# Examples a rule in a report, and characters of each.
EXAMPLES = 5
EXAMPLE_CHARACTERS = 200
# Bytes that steps may add to the rows of a shard: all of them are in memory at once.
_MOST_GROWTH = 256 * 1024 * 1024
# Characters before the first difference that are shown.
_BEFORE_CHANGE = 20


@dataclass(slots=True)
class Fault:
    """Why a text goes.

    Attributes:
        operator: that drops it.
        reason: the figure and the limit.
    """

    operator: str
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator made of a text, around the first place where it differs."""

    at: int
    before: str
    after: str


class StoppedAt(Exception):
    """A step cannot go on.

    Attributes:
        at: number of the row.
        operator: of the step.
        reason: for people.
        is_setup: the machine lacks something; no row is at fault.
    """

    def __init__(self, at: int, operator: str, reason: str, *, is_setup: bool = False) -> None:
        super().__init__(at, operator, reason)
        self.at, self.operator, self.reason, self.is_setup = at, operator, reason, is_setup


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows of texts come from.

    Attributes:
        column: that the texts are.
        kinds: all columns, and their types as `libs.compute.versions` names them.
        load: rows by number, read only when a step wants more than texts.
    """

    column: str
    kinds: Mapping[str, str]
    load: Callable[[Sequence[int]], list[Row]]

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Source:
        """Rows of nothing but a text."""
        return cls("text", {"text": STRING}, lambda some: [{"text": texts[at]} for at in some])


class Texts:
    """Texts with what the steps did to them so far.

    Args:
        texts: in order.
        source: of the rows; its numbers count from `first`.
        first: number of the first text.

    Attributes:
        texts: as they are now.
        faults: number of a text to why it goes.
        changes: number of a text to the operators that changed it, in order.
        examples: operator to the first texts that it changed.
        contents: number of a text to its row, for rows that a step changed as such.
        kinds: columns and their types, those of computed ones included.
        growth: bytes by which rows became larger as such.
    """

    def __init__(self, texts: Sequence[str], source: Source, first: int = 0) -> None:
        self.texts = list(texts)
        self.contents: dict[int, Row] = {}
        self._source = source
        self._first = first
        self._loaded: dict[int, Row] = {}
        self.kinds = dict(self._source.kinds)
        self.growth = 0
        self.faults: dict[int, Fault] = {}
        self.changes: dict[int, list[str]] = {}
        self.examples: dict[str, list[Change]] = {}
        self._operator = ""
        self._words: tuple[list[int], WordTable] | None = None

    @property
    def operator(self) -> str:
        """Of the step that is under way."""
        return self._operator

    def begin(self, operator: str) -> None:
        """The next step."""
        self._operator = operator

    @property
    def left(self) -> list[int]:
        """Numbers of the texts that no step dropped."""
        return [at for at in range(len(self.texts)) if at not in self.faults]

    def drop(self, at: int, reason: str) -> None:
        """Drops a text; one that is gone already keeps its first reason."""
        self.faults.setdefault(at, Fault(self._operator, reason))

    def replace(self, at: int, text: str) -> None:
        """Takes the changed text; nothing happens if it is the same."""
        before = self.texts[at]
        if text != before:
            self.texts[at] = text
            self._show(at, before, text)
            self._changed(at)
            self._words = None
            if at in self.contents:
                self.contents[at][self._source.column] = text

    def row(self, at: int) -> Row:
        """The whole row as it is now. It belongs to the caller."""
        if at in self.contents:
            return dict(self.contents[at])
        if at not in self._loaded:
            lacking = [one for one in self.left if one not in self._loaded]
            loaded = self._source.load([self._first + one for one in lacking])
            self._loaded |= zip(lacking, loaded, strict=True)
        changed = {self._source.column: self.texts[at]} if at in self.changes else {}
        return {**self._loaded[at], **changed}

    def replace_row(self, at: int, row: Row) -> None:
        """Takes the changed row; nothing happens if it is the same. Raises `StoppedAt` when rows grow too much."""
        before = self.row(at)
        names = [name for name in {**before, **row} if _differ(before.get(name), row.get(name))]
        if not names:
            return
        self.contents[at] = row
        was, now = _json_of(before, names), _json_of(row, names)
        self._grow(at, len(now) - len(was))
        self._show(at, was, now)
        self._changed(at)
        column = self._source.column
        if column in names:
            self.texts[at] = as_text(row.get(column))
            self._words = None

    @property
    def words(self) -> tuple[list[int], WordTable]:
        """Numbers of the texts that were left when their words were last counted, and those words."""
        if self._words is None:
            left = self.left
            self._words = left, word_table([self.texts[at] for at in left])
        return self._words

    def extend(self, more: Texts) -> None:
        """Appends other texts with what was done to them."""
        first = len(self.texts)
        self._operator = more.operator
        self._grow(first, more.growth)
        self.texts += more.texts
        self.contents |= {first + at: row for at, row in more.contents.items()}
        self._loaded |= {first + at: row for at, row in more._loaded.items()}
        self.faults |= {first + at: fault for at, fault in more.faults.items()}
        self.changes |= {first + at: names for at, names in more.changes.items()}
        for operator, changes in more.examples.items():
            kept = self.examples.setdefault(operator, [])
            kept += [replace(change, at=first + change.at) for change in changes[: EXAMPLES - len(kept)]]

    def each(self, change: Callable[[str], str]) -> None:
        """Changes every text that is left."""
        for at in self.left:
            self.replace(at, change(self.texts[at]))

    def judge(self, fault: Callable[[str], str | None]) -> None:
        """Drops every text for which there is a reason."""
        for at in self.left:
            reason = fault(self.texts[at])
            if reason is not None:
                self.drop(at, reason)

    def _grow(self, at: int, size: int) -> None:
        self.growth += size
        if self.growth > _MOST_GROWTH:
            raise StoppedAt(at, self._operator, f"it makes {len(self.texts):,} rows larger by {_MOST_GROWTH:,} bytes")

    def _changed(self, at: int) -> None:
        names = self.changes.setdefault(at, [])
        # A step that sets several columns of a row changes it once.
        if not names or names[-1] != self._operator:
            names.append(self._operator)

    def _show(self, at: int, before: str, after: str) -> None:
        examples = self.examples.setdefault(self._operator, [])
        if len(examples) < EXAMPLES:
            examples.append(_change(at, before, after))


def as_text(value: Any) -> str:
    """A value of the column with the text: a missing one is empty, other types are written as JSON."""
    return "" if value is None else value if isinstance(value, str) else to_json(value)


def _differ(one: Any, other: Any) -> bool:
    """Whether JSON tells two values apart: 1 and 1.0 are the same to it, 1 and True are not."""
    if one != other or isinstance(one, bool) != isinstance(other, bool):
        return True
    return isinstance(one, dict | list) and repr(one) != repr(other)


def _json_of(row: Row, names: list[str]) -> str:
    return to_json({name: row.get(name) for name in names})


def _change(at: int, before: str, after: str) -> Change:
    pairs = enumerate(zip(before, after, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(before), len(after)))
    begin = max(0, same - _BEFORE_CHANGE)
    window = slice(begin, begin + EXAMPLE_CHARACTERS)
    return Change(at, before[window].replace("\x00", "\ufffd"), after[window].replace("\x00", "\ufffd"))
