"""A few hundred texts on their way through the steps of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.dataset.engines.word_table import WordTable, word_table

# Examples a rule in a report, and characters of each.
EXAMPLES = 5
EXAMPLE_CHARACTERS = 200
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


class Texts:
    """Texts with what the steps did to them so far.

    Attributes:
        texts: as they are now.
        faults: number of a text to why it goes.
        changes: number of a text to the operators that changed it, in order.
        examples: operator to the first texts that it changed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.faults: dict[int, Fault] = {}
        self.changes: dict[int, list[str]] = {}
        self.examples: dict[str, list[Change]] = {}
        self._operator = ""
        self._words: tuple[list[int], WordTable] | None = None

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
            examples = self.examples.setdefault(self._operator, [])
            if len(examples) < EXAMPLES:
                examples.append(_change(at, before, text))
            self.changes.setdefault(at, []).append(self._operator)
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
        self.texts += more.texts
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


def _change(at: int, before: str, after: str) -> Change:
    pairs = enumerate(zip(before, after, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(before), len(after)))
    begin = max(0, same - _BEFORE_CHANGE)
    window = slice(begin, begin + EXAMPLE_CHARACTERS)
    return Change(at, before[window].replace("\x00", "\ufffd"), after[window].replace("\x00", "\ufffd"))
