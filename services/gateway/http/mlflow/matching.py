"""Short lists that are filtered and paged here: experiments and registered models."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from services.gateway.http.mlflow.errors import ParameterError
from services.gateway.http.mlflow.filters import Comparison
from services.gateway.http.mlflow.given import Given, Json

_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MOST = 50_000


def meets(value: str | float, condition: Comparison) -> bool:
    """Whether a value is as a condition wants it. Raises ParameterError for a text beside a number."""
    if isinstance(value, str) == (condition.number is not None):
        kind = "a text" if isinstance(value, str) else "a number"
        raise ParameterError("filter", f"{condition.key} is {kind}")
    if isinstance(value, str):
        match condition.operator:
            case "IN":
                return value in condition.texts
            case "NOT IN":
                return value not in condition.texts
            case "LIKE":
                return _like(value, condition.texts[0])
            case "ILIKE":
                return _like(value.lower(), condition.texts[0].lower())
            case _:
                return _COMPARED[condition.operator](value, condition.texts[0])
    if condition.operator not in _COMPARED:
        raise ParameterError("filter", f"{condition.key} is a number, which has no {condition.operator}")
    return _COMPARED[condition.operator](value, condition.number)


def _like(value: str, pattern: str) -> bool:
    """`%` stands for any text, `_` for one character. A regular expression of many `%` could take for ever."""
    at, place, star, resume = 0, 0, -1, 0
    while at < len(value):
        if place < len(pattern) and pattern[place] == "%":
            star, resume = place, at
            place += 1
        elif place < len(pattern) and pattern[place] in ("_", value[at]):
            at, place = at + 1, place + 1
        elif star >= 0:
            # The last `%` takes one character more.
            resume += 1
            at, place = resume, star + 1
        else:
            return False
    return not pattern[place:].strip("%")


def page_of(found: Sequence[Json], given: Given, usual: int) -> tuple[Sequence[Json], str]:
    """A page by `max_results` and `page_token`, and the token of the next one, empty at the end."""
    size = given.whole("max_results", usual)
    if not 1 <= size <= _MOST:
        raise ParameterError("max_results", f"must be between 1 and {_MOST:,}")
    token = given.text("page_token", most=20) or "0"
    if not token.isascii() or not token.isdecimal():
        raise ParameterError("page_token", "is not one that this list gave")
    start = int(token)
    end = start + size
    return found[start:end], str(end) if end < len(found) else ""
