"""The language in which lists of runs are filtered and sorted: comparisons joined by AND, a small part of AIP-160.

state = FAILED AND labels.team = "nlp" AND results.sft.last_loss < 1.2 AND create_time >= "2026-01-02T00:00:00Z"
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from libs.common.domain import DomainError
from libs.common.domain import invalid as invalid_field
from services.training.domain.runs import RunState, Value

_TEXTS = (
    "state",
    "training",
    "creator",
    "dataset_version",
    "validation_version",
    "model_project",
    "base_model_version",
    "algorithm_version",
)
# Numbers or texts.
_GIVEN = ("spec.", "parameters.")
_FIELDS = (*_TEXTS, "create_time", "labels.*", "results.*", "spec.*", "parameters.*")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_OPERATOR = re.compile(r"<=|>=|!=|=|<|>")
_VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"'=<>!()]+")
_SPACE = re.compile(r"\s*")
_AND = re.compile(r"AND(?=\s)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_MOST = 20


@dataclass(frozen=True)
class Comparison:
    """One condition.

    Attributes:
        field: such as `state` or `results.sft.last_loss`.
        operator: `=`, `!=`, and for numbers `<`, `<=`, `>`, `>=`.
        value: a number, or text. Times are microseconds since 1970.
    """

    field: str
    operator: str
    value: Value


@dataclass(frozen=True)
class Ordering:
    """By which number runs are sorted."""

    field: str = "create_time"
    descending: bool = True


def parse_filter(text: str) -> list[Comparison]:
    """The comparisons of a filter.

    Raises:
        DomainError: INVALID_FIELD that names the field `filter` and the character where it cannot be read.
    """
    found: list[Comparison] = []
    at = _skip(text, 0)
    while at < len(text):
        if found:
            at = _skip(text, _expect(_AND, text, at, "AND").end())
        if len(found) == _MOST:
            raise _wrong(at, f"more than {_MOST} comparisons")
        name = _expect(_FIELD, text, at, "a field")
        operator = _expect(_OPERATOR, text, _skip(text, name.end()), "one of = != < <= > >=")
        value = _expect(_VALUE, text, _skip(text, operator.end()), "a value")
        found.append(_comparison(name, operator, value))
        at = _skip(text, value.end())
    return found


def parse_order(text: str) -> Ordering:
    """What `order_by` says; empty: the newest first.

    Raises:
        DomainError: INVALID_FIELD that names the field `order_by`.
    """
    if not text.strip():
        return Ordering()
    name, *direction = text.split()
    sortable = name == "create_time" or name.startswith(("results.", *_GIVEN))
    if not sortable or _FIELD.fullmatch(name) is None:
        raise invalid_field("order_by", f"{name!r} is not create_time, results.*, spec.* or parameters.*")
    if direction not in ([], ["asc"], ["desc"]):
        raise invalid_field("order_by", "has a field and, behind it, nothing, asc or desc")
    return Ordering(name, direction == ["desc"])


def microseconds(moment: datetime) -> float:
    """Since 1970; exact in a double until the year 2255."""
    return float((moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND)


_MICROSECOND = datetime.resolution


def _comparison(name: re.Match[str], operator: re.Match[str], value: re.Match[str]) -> Comparison:
    field, sign, at = name[0], operator[0], value.start()
    quoted = value[0][0] in "\"'"
    plain = _ESCAPE.sub(r"\1", value[0][1:-1]) if quoted else value[0]
    if field == "create_time":
        return Comparison(field, sign, _time(plain, at))
    if field.startswith("results."):
        return Comparison(field, sign, _number(plain, at, field))
    if field.startswith(_GIVEN):
        number = None if quoted else _as_number(plain)
        if number is not None:
            return Comparison(field, sign, number)
    elif field not in _TEXTS and not field.startswith("labels."):
        raise _wrong(name.start(), f"there is no field {field!r}; there are {', '.join(_FIELDS)}")
    if sign not in ("=", "!="):
        raise _wrong(operator.start(), f"{field} is text, which has = and != only")
    if field == "state":
        plain = plain.upper().removeprefix("STATE_")
        if plain not in RunState.__members__:
            raise _wrong(at, f"{plain!r} is no state; there are {', '.join(RunState)}")
    return Comparison(field, sign, plain.rsplit("/", 1)[-1] if field == "training" else plain)


def _number(text: str, at: int, field: str) -> float:
    number = _as_number(text)
    if number is None:
        raise _wrong(at, f"{field} is a number, and {text!r} is none")
    return number


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time(text: str, at: int) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong(at, f"{text!r} is not a time such as 2026-01-02T03:04:05Z") from None
    return microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _expect(pattern: re.Pattern[str], text: str, at: int, what: str) -> re.Match[str]:
    match = pattern.match(text, at)
    if match is None:
        raise _wrong(at, f"expected {what}, found {text[at : at + 20]!r}" if at < len(text) else f"expected {what}")
    return match


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _wrong(at: int, problem: str) -> DomainError:
    return invalid_field("filter", f"at character {at + 1}: {problem}")
