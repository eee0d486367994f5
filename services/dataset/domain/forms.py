"""Forms: what people are asked, and whether an answer answers it."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

from libs.common.domain import DomainError
from services.dataset.domain.fields import as_list, as_mapping

# Boxes of an answer; people draw fewer, models may propose many.
MAX_BOXES = 1_000
MAX_TEXT = 100_000
# Different answers to a question: statistics keep a number for every two.
MAX_CLASSES = 256

Answer = dict[str, Any]


class FieldKind(enum.StrEnum):
    """What a question asks for, as `WorkFieldKind` names it; the names that stored forms and statistics use."""

    CHOICE = "choice"
    CHOICES = "choices"
    RATING = "rating"
    TEXT = "text"
    BOXES = "boxes"
    PREFERENCE = "preference"


# In the order of the numbers of `WorkFieldKind`.
KINDS = tuple(FieldKind)
_WITH_CHOICES = (FieldKind.CHOICE, FieldKind.CHOICES, FieldKind.BOXES, FieldKind.PREFERENCE)


@dataclass(frozen=True)
class Field:
    """One question. See `WorkField` for the attributes."""

    name: str
    kind: FieldKind
    title: str = ""
    choices: tuple[str, ...] = ()
    min: int = 0
    max: int = 0
    optional: bool = False

    def fault(self) -> str:
        """What is wrong with the question itself; empty if nothing is."""
        if self.kind in _WITH_CHOICES and not self.choices:
            return "needs choices"
        if self.kind not in _WITH_CHOICES and self.choices:
            return f"a {self.kind} has no choices"
        if self.kind is FieldKind.PREFERENCE and len(self.choices) < 2:
            return "needs two choices or more"
        if self.kind is FieldKind.RATING and self.min >= self.max:
            return "needs min below max"
        if self.max - self.min >= MAX_CLASSES:
            return f"has more than {MAX_CLASSES} ratings"
        return ""

    def fault_of(self, value: Any) -> str:
        """What is wrong with an answer to it; empty if nothing is."""
        match self.kind:
            case FieldKind.CHOICE | FieldKind.PREFERENCE:
                return "" if value in self.choices else f"must be one of {_listed(self.choices)}"
            case FieldKind.CHOICES:
                return self._fault_of_choices(value)
            case FieldKind.RATING:
                fits = is_number(value) and value == int(value) and self.min <= value <= self.max
                return "" if fits else f"must be a whole number from {self.min} to {self.max}"
            case FieldKind.TEXT:
                if not isinstance(value, str) or not value.strip():
                    return "must be a text"
                return f"is longer than {MAX_TEXT:,} characters" if len(value) > MAX_TEXT else ""
            case FieldKind.BOXES:
                return self._fault_of_boxes(value)

    def _fault_of_choices(self, value: Any) -> str:
        given = as_list(value)
        if given is None or not all(choice in self.choices for choice in given):
            return f"must be a list of {_listed(self.choices)}"
        return "names a choice twice" if len(set(given)) < len(given) else ""

    def _fault_of_boxes(self, value: Any) -> str:
        given = as_list(value)
        if given is None:
            return "must be a list of boxes"
        if len(given) > MAX_BOXES:
            return f"has more than {MAX_BOXES:,} boxes"
        for number, entry in enumerate(given):
            found = as_mapping(entry) or {}
            if found.get("label") not in self.choices:
                return f"[{number}].label must be one of {_listed(self.choices)}"
            if not is_box(found.get("box")):
                return f"[{number}].box must be [x, y, width, height] in pixels, width and height above 0"
        return ""


@dataclass(frozen=True)
class Form:
    """What people are shown and asked. See `WorkForm` for the attributes."""

    fields: tuple[Field, ...] = ()
    instructions: str = ""
    shown: tuple[str, ...] = ()

    def require_sound(self, place: str) -> None:
        """Raises INVALID_FIELD, below `place`, for a form that nobody could fill in."""
        if not self.fields:
            raise DomainError("INVALID_FIELD", f"{place}.fields: is empty", field=f"{place}.fields")
        seen: set[str] = set()
        for number, asked in enumerate(self.fields):
            fault = f"{asked.name} is there twice" if asked.name in seen else asked.fault()
            if fault:
                at = f"{place}.fields[{number}]"
                raise DomainError("INVALID_FIELD", f"{at}: {fault}", field=at)
            seen.add(asked.name)

    def require_answered(self, answer: Answer, place: str = "answer") -> None:
        """Raises INVALID_FIELD, naming the question, for an answer that is not one to this form."""
        names = [asked.name for asked in self.fields]
        for name in answer:
            if name not in names:
                raise _wrong(place, name, f"is no question; there are {_listed(names)}")
        for asked in self.fields:
            if asked.name not in answer:
                if not asked.optional:
                    raise _wrong(place, asked.name, "is missing")
                continue
            if fault := asked.fault_of(answer[asked.name]):
                raise _wrong(place, asked.name, fault)

    def to_json(self) -> dict[str, Any]:
        """For the database and the statistics."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Form:
        """The form that `to_json` stored."""
        fields = tuple(_field(given) for given in stored["fields"])
        return cls(fields, stored["instructions"], tuple(stored["shown"]))


@dataclass(frozen=True)
class BuiltInTemplate:
    """A form that every organization has."""

    name: str
    description: str
    form: Form = field(default_factory=Form)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether JSON gave a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_box(value: Any) -> TypeGuard[list[float]]:
    """Whether this is `[x, y, width, height]` with an area."""
    given = as_list(value) or []
    sides = [side for side in given if is_number(side)]
    return len(given) == len(sides) == 4 and sides[2] > 0 and sides[3] > 0


def _field(stored: dict[str, Any]) -> Field:
    given: dict[str, Any] = {**stored, "kind": FieldKind(stored["kind"]), "choices": tuple(stored["choices"])}
    return Field(**given)


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return ", ".join(listed[:20]) + more


def _wrong(place: str, name: str, fault: str) -> DomainError:
    at = f"{place}.{name}"
    return DomainError("INVALID_FIELD", f"{at}: {fault}", field=at)


def _text(name: str, title: str = "", optional: bool = False) -> Field:
    return Field(name, FieldKind.TEXT, title, optional=optional)


BUILT_IN = (
    BuiltInTemplate(
        "image-boxes",
        "Boxes around the things in an image. Give the labels in a form of your own.",
        Form((Field("objects", FieldKind.BOXES, "Draw a box around each object", ("object",)),), "", ("image",)),
    ),
    BuiltInTemplate(
        "image-description", "An image in words.", Form((_text("description", "What is to be seen?"),), "", ("image",))
    ),
    BuiltInTemplate(
        "video-description", "A video in words.", Form((_text("description", "What happens?"),), "", ("video",))
    ),
    BuiltInTemplate(
        "question-answer",
        "Instruction, input and output, to tune models with.",
        Form((_text("instruction"), _text("input", optional=True), _text("output"))),
    ),
    BuiltInTemplate(
        "sentiment",
        "How a text feels.",
        Form(
            (Field("sentiment", FieldKind.CHOICE, "How does it feel?", ("positive", "neutral", "negative")),),
            "",
            ("text",),
        ),
    ),
    BuiltInTemplate(
        "speech-to-text", "What is said in a recording.", Form((_text("text", "What is said?"),), "", ("audio",))
    ),
    BuiltInTemplate(
        "preference",
        "The better one of two answers.",
        Form(
            (
                Field(
                    "better",
                    FieldKind.PREFERENCE,
                    "Which answer is better?",
                    ("answer_a", "answer_b", "tie", "both_bad"),
                ),
                _text("why", optional=True),
            ),
            "",
            ("prompt", "answer_a", "answer_b"),
        ),
    ),
)


def built_in(name: str) -> Form:
    """The form of a built-in template. Raises NOT_FOUND."""
    for template in BUILT_IN:
        if template.name == name:
            return template.form
    names = _listed(template.name for template in BUILT_IN)
    raise DomainError("NOT_FOUND", f"There is no built-in template {name}; there are {names}.", name=name)
