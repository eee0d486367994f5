"""Which algorithm learns a task from a dataset version, and from which columns, when nobody says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from libs.common.domain import DomainError
from services.training.domain.algorithms import Entry, Role
from services.training.domain.preflight import DataFacts
from services.training.domain.spec import invalid

Json = dict[str, Any]

_NUMBERS = frozenset({"int53", "int64", "double"})
_LABEL_TYPES = frozenset({"string", "int53", "int64", "bool"})
# What dataset writes about a row's file; none of them is what somebody wants to learn.
_OF_FILES = frozenset(
    [
        "file_name",
        "media_type",
        "bytes",
        "sha256",
        "width",
        "height",
        "duration",
        "sample_rate",
        "channels",
        "codec",
        "frames",
        "fps",
    ]
)
_LABEL_NAMES = ("label", "class", "category", "target", "answer", "y")
_TARGET_TYPES = _LABEL_TYPES | _NUMBERS
_NUMBER_NAMES = ("target", "y", "value", "price", "label")
# A category is a word or two; a Chinese sentence is short too.
_SENTENCE_CHARACTERS = 12.0


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        parameters: those that name columns; all others keep their defaults.
        reason: in words.
    """

    entry: Entry
    parameters: Json
    reason: str


def choose(task: str, facts: DataFacts | None, entries: Sequence[Entry], given: Json) -> Choice:
    """The algorithm for a task.

    Args:
        facts: of the version to learn from, with a sample; None: there is none.
        entries: to choose from.
        given: parameters of the training: a column that it names is not chosen.

    Raises:
        DomainError: INVALID_FIELD for a task that none has; PREFLIGHT_FAILED when no column fits.
    """
    able = [entry for entry in entries if entry.task == task]
    if not able:
        tasks = ", ".join(sorted({entry.task for entry in entries}))
        raise invalid("training.task", f"must be one of {tasks}")
    if facts is None:
        entry = require_no_data(task, able)
        return Choice(entry, {}, f"{entry.id} was chosen for {task}: it reads no data.")
    kind, why = _kind(facts)
    entry = next((entry for entry in able if entry.reads == kind), None)
    entry = entry or next((entry for entry in able if entry.reads == "table"), able[0])
    chosen: Json = {}
    for parameter, role in entry.columns.items():
        # An empty default is a column that the algorithm can do without.
        named = given.get(parameter)
        if isinstance(named, str):
            chosen[parameter] = named
        elif role is not Role.FEATURES and entry.parameters["properties"][parameter]["default"]:
            chosen[parameter] = _column(entry, parameter, role, facts, set(chosen.values()))
    read = ", ".join(f"{parameter} = {name!r}" for parameter, name in chosen.items())
    return Choice(entry, chosen, f"{entry.id} was chosen for {task}: {why}; {read}.")


def require_no_data(task: str, entries: Iterable[Entry]) -> Entry:
    """The algorithm for a task that reads no data. Raises INVALID_FIELD, where all do."""
    entry = next((entry for entry in entries if entry.task == task and not entry.reads), None)
    if entry is None:
        raise invalid("training.dataset_version", f"must be set: {task} is learned from data")
    return entry


def _kind(facts: DataFacts) -> tuple[str, str]:
    """What the version is made of, and how that is seen."""
    if {"file_name", "media_type"} <= facts.columns.keys():
        media = [row.get("media_type", "") for row in facts.sample]
        kind = max(set(media), key=media.count) if media else "image"
        return kind, f"its rows have files of type {kind}"
    sentences = _longest(facts, _named(facts, {"string"}))
    numbers = _named(facts, {"double"})
    if sentences and not numbers and _mean_length(facts, sentences) >= _SENTENCE_CHARACTERS:
        return "text", f"column {sentences!r} holds texts of about {_mean_length(facts, sentences):.0f} characters"
    return "table", "its columns are numbers and categories"


def _column(entry: Entry, parameter: str, role: Role, facts: DataFacts, taken: set[Any]) -> str:
    default: str = entry.parameters["properties"][parameter]["default"]
    if default in facts.columns and default not in taken and role in (Role.TEXT, Role.OTHER):
        return default
    candidates = {
        Role.LABEL: lambda: _by_name(facts, _LABEL_TYPES, _LABEL_NAMES, taken) or _fewest(facts, taken),
        Role.NUMBER: lambda: _by_name(facts, _NUMBERS, _NUMBER_NAMES, taken) or _last(_named(facts, _NUMBERS, taken)),
        Role.TARGET: lambda: (
            _by_name(facts, _TARGET_TYPES, (*_LABEL_NAMES, *_NUMBER_NAMES), taken)
            or _last(_named(facts, _TARGET_TYPES, taken))
        ),
        Role.TEXT: lambda: _longest(facts, _named(facts, {"string"}, taken)),
        Role.OTHER: lambda: (
            _only(_named(facts, {"json"}, taken))
            or (_longest(facts, _named(facts, {"string"}, taken)) if entry.reads == "text" else "")
        ),
    }
    found = candidates[role]() if role in candidates else default if default in facts.columns else ""
    if not found:
        have = ", ".join(facts.columns) or "none"
        message = f"{entry.id} needs {parameter}, and no column of {facts.name} is that; it has {have}."
        raise DomainError("PREFLIGHT_FAILED", message, check="schema", detail=message)
    return found


def _named(facts: DataFacts, types: Iterable[str], taken: Iterable[Any] = ()) -> list[str]:
    wanted, left_out = set(types), _OF_FILES | set(taken)
    return [name for name, kind in facts.columns.items() if kind in wanted and name not in left_out]


def _by_name(facts: DataFacts, types: Iterable[str], names: Sequence[str], taken: set[Any]) -> str:
    able = {name.lower(): name for name in reversed(_named(facts, types, taken))}
    return next((able[name] for name in names if name in able), "")


def _fewest(facts: DataFacts, taken: set[Any]) -> str:
    """The column with the fewest different values, at least two; the last of several."""
    counts = [(len(set(_values(facts, name))), name) for name in _named(facts, _LABEL_TYPES, taken)]
    able = [(count, name) for count, name in counts if count > 1]
    least = min((count for count, _ in able), default=0)
    return _last([name for count, name in able if count == least])


def _longest(facts: DataFacts, names: Sequence[str]) -> str:
    return max(names, key=lambda name: _mean_length(facts, name), default="")


def _mean_length(facts: DataFacts, name: str) -> float:
    values = _values(facts, name)
    return sum(map(len, values)) / len(values) if values else 0.0


def _values(facts: DataFacts, name: str) -> list[str]:
    return [row[name] for row in facts.sample if row.get(name)]


def _only(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ""


def _last(names: Sequence[str]) -> str:
    return names[-1] if names else ""
