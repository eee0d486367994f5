"""Answers of people, read by the fields of their form."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from services.dataset.domain.forms import MAX_BOXES, MAX_CLASSES

CHOICE, CHOICES, RATING, TEXT, BOXES, PREFERENCE = "choice", "choices", "rating", "text", "boxes", "preference"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form.

    Attributes:
        name: Of the field.
        kind: One of the above.
        choices: Of a choice, choices or preference.
        least, most: Of a rating, both among the ratings.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()
    least: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True)
class BoxList:
    """The boxes of an answer, in an order that depends on themselves alone.

    Attributes:
        labels: (n,) of each.
        corners: (n, 4) left, top, right, bottom in pixels.
    """

    labels: tuple[str, ...]
    corners: np.ndarray


@dataclass(frozen=True, slots=True)
class Column:
    """What was answered in one field, ordered by item and then by worker.

    Attributes:
        field: Answered.
        items, workers: (answers,) numbers of the item and of the worker.
        values: Of the answers, as `read_value` gives them.
        invalid: Answers that are left out, because no form with this field gives them.
    """

    field: Field
    items: np.ndarray
    workers: np.ndarray
    values: Sequence[Any]
    invalid: int


class Answers:
    """The answers of all workers to all items, one of a worker to an item: the last one given.

    Args:
        answers: With `item`, `worker`, `answer` by field, and, where there are any, `right` and `seconds`.

    Raises:
        ValueError: An answer without an item or a worker, or one that is not by field.
    """

    def __init__(self, answers: Sequence[Json]) -> None:
        last: dict[tuple[str, str], Json] = {}
        for number, answer in enumerate(answers):
            _check(answer, f"answers[{number}]")
            last[answer["item"], answer["worker"]] = answer
        self.items = sorted({item for item, _ in last})
        self.workers = sorted({worker for _, worker in last})
        self._item_numbers = {name: number for number, name in enumerate(self.items)}
        self._worker_numbers = {name: number for number, name in enumerate(self.workers)}
        self._sorted = [last[key] for key in sorted(last)]

    def column(self, field: Field) -> Column:
        """What was answered in a field; an answer without it counts nowhere."""
        items: list[int] = []
        workers: list[int] = []
        values: list[Any] = []
        invalid = 0
        for answer in self._sorted:
            given = answer["answer"].get(field.name)
            if given is None:
                continue
            value = read_value(field, given)
            if value is None:
                invalid += 1
                continue
            items.append(self._item_numbers[answer["item"]])
            workers.append(self._worker_numbers[answer["worker"]])
            values.append(value)
        return Column(field, np.array(items, np.int64), np.array(workers, np.int64), values, invalid)

    def of_workers(self) -> dict[str, list[Json]]:
        """The answers of each worker."""
        by_worker: dict[str, list[Json]] = {worker: [] for worker in self.workers}
        for answer in self._sorted:
            by_worker[answer["worker"]].append(answer)
        return by_worker


def read_fields(fields: Sequence[Json]) -> list[Field]:
    """The fields of a form.

    Args:
        fields: With `name`, `kind`, and `choices` (texts) or `min` and `max` (whole numbers) where the kind has them.

    Raises:
        ValueError: Names the field that is none.
    """
    read = [_field(field, f"fields[{number}]") for number, field in enumerate(fields)]
    if len({field.name for field in read}) < len(read):
        raise ValueError("fields: two have one name")
    return read


def _field(field: Json, where: str) -> Field:
    name, kind = field.get("name"), field.get("kind")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.name: a text that is not empty is needed")
    if kind not in _READERS:
        raise ValueError(f"{where}.kind: {kind!r} is none of {', '.join(_READERS)}")
    if kind in (CHOICE, CHOICES, PREFERENCE):
        return Field(name, kind, choices=_choices(field.get("choices"), f"{where}.choices"))
    if kind == RATING:
        least, most = (_whole(field.get(bound)) for bound in ("min", "max"))
        if least is None or most is None or not 0 < most - least < MAX_CLASSES:
            raise ValueError(f"{where}: min and max must be whole numbers, min below max by less than {MAX_CLASSES}")
        return Field(name, kind, least=least, most=most)
    return Field(name, kind)


def _choices(given: Any, where: str) -> tuple[str, ...]:
    texts = isinstance(given, (list, tuple)) and all(isinstance(choice, str) for choice in given)
    if not texts or not 1 <= len(given) <= MAX_CLASSES or len(set(given)) < len(given):
        raise ValueError(f"{where}: 1 to {MAX_CLASSES} different texts are needed")
    return tuple(given)


def _check(answer: Any, where: str) -> None:
    if not isinstance(answer, dict):
        raise ValueError(f"{where}: must be an object")
    for key in ("item", "worker"):
        if not isinstance(answer.get(key), str):
            raise ValueError(f"{where}.{key}: must be a text")
    if not isinstance(answer.get("answer"), dict):
        raise ValueError(f"{where}.answer: must be an object with the fields' names")
    if not isinstance(answer.get("right"), bool | None):
        raise ValueError(f"{where}.right: must be true or false, or nothing")


def read_value(field: Field, given: Any) -> Any:
    """The value of a field in an answer; equal answers are equal values. None where the form cannot have given it.

    Gives the number of the choice, a tuple of bools by choice, the rating less the least one, the normalised text, or a
    `BoxList`.
    """
    return _READERS[field.kind](field, given)


def _read_choice(field: Field, given: Any) -> int | None:
    return field.choices.index(given) if isinstance(given, str) and given in field.choices else None


def _read_choices(field: Field, given: Any) -> tuple[bool, ...] | None:
    if not isinstance(given, (list, tuple)) or any(_read_choice(field, choice) is None for choice in given):
        return None
    return tuple(choice in given for choice in field.choices)


def _read_rating(field: Field, given: Any) -> int | None:
    rating = _whole(given)
    return rating - field.least if rating is not None and field.least <= rating <= field.most else None


def _read_text(field: Field, given: Any) -> str | None:
    """Case, white space and forms of one character are no difference."""
    return " ".join(unicodedata.normalize("NFKC", given).casefold().split()) if isinstance(given, str) else None


def _read_boxes(field: Field, given: Any) -> BoxList | None:
    """A box without an area can have been drawn, though it matches none; one with a negative or endless side cannot."""
    if not isinstance(given, (list, tuple)) or len(given) > MAX_BOXES:
        return None
    read = [_read_box(box) for box in given]
    boxes = sorted(box for box in read if box is not None)
    if len(boxes) < len(read):
        return None
    corners = [(x, y, x + width, y + height) for (x, y, width, height), _ in boxes]
    return BoxList(tuple(label for _, label in boxes), np.array(corners, np.float64).reshape(-1, 4))


def _read_box(given: Any) -> tuple[tuple[float, ...], str] | None:
    if not isinstance(given, dict):
        return None
    label, box = given.get("label"), given.get("box")
    if not isinstance(label, str) or not isinstance(box, (list, tuple)) or len(box) != 4:
        return None
    # Sums and areas of numbers below this stay finite.
    if not all(_is_number(edge) and abs(edge) < 1e100 for edge in box) or min(box[2:]) < 0:
        return None
    return tuple(map(float, box)), label


def _whole(given: Any) -> int | None:
    """A whole number, as JSON may have made a float of it."""
    return int(given) if _is_number(given) and given == int(given) else None


def _is_number(given: Any) -> bool:
    # An int can be larger than any float, which isfinite would make of it.
    return (isinstance(given, int) and not isinstance(given, bool)) or (isinstance(given, float) and isfinite(given))


_READERS: dict[str, Callable[[Field, Any], Any]] = {
    CHOICE: _read_choice,
    CHOICES: _read_choices,
    RATING: _read_rating,
    TEXT: _read_text,
    BOXES: _read_boxes,
    PREFERENCE: _read_choice,
}
