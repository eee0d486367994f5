"""Parameters of algorithms: a part of JSON Schema (draft 2020-12), and values against it.

A schema may come from a user. So it has bounds, and no keyword whose cost or meaning depends on the reader: no
references, no patterns, no conditions. One that is not listed here is refused by its name.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

from services.training.domain.spec import invalid

Json = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
MOST_BYTES = 65_536
# Of an algorithm all of whose parameters are fixed.
EMPTY: Json = {"$schema": DRAFT, "type": "object", "properties": {}, "additionalProperties": False}
_MOST_DEPTH = 6
_MOST_PROPERTIES = 100
# Enough to mend a request; a hostile one gets no longer answer.
_MOST_VIOLATIONS = 20


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and float(value).is_integer()


_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and float(value).is_integer(),
    "number": _is_number,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_TEXT = ("a text", _TYPES["string"])
_NUMBER = ("a number", _is_number)
_COUNT = ("a count", _is_count)
# Keyword: what its value must be, in words and as a test.
_KEYWORDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (f"one of {', '.join(_TYPES)}", lambda value: isinstance(value, str) and value in _TYPES),
    "title": _TEXT,
    "description": _TEXT,
    "default": ("anything", lambda value: True),
    "enum": ("a list that is not empty", lambda value: isinstance(value, list) and bool(value)),
    "minimum": _NUMBER,
    "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "exclusiveMaximum": _NUMBER,
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "minLength": _COUNT,
    "maxLength": _COUNT,
    "minItems": _COUNT,
    "maxItems": _COUNT,
    "items": ("a schema", _TYPES["object"]),
}
_ROOT_KEYWORDS = frozenset({"$schema", "type", "title", "description", "properties", "additionalProperties"})
_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", operator.ge),
    "maximum": ("at most", operator.le),
    "exclusiveMinimum": ("more than", operator.gt),
    "exclusiveMaximum": ("less than", operator.lt),
    "multipleOf": ("a multiple of", lambda value, bound: float(value / bound).is_integer()),
}
_SIZES: dict[str, tuple[type, str, Callable[[int, int], bool]]] = {
    "minLength": (str, "at least {} characters", operator.ge),
    "maxLength": (str, "at most {} characters", operator.le),
    "minItems": (list, "at least {} entries", operator.ge),
    "maxItems": (list, "at most {} entries", operator.le),
}


def check_schema(schema: Json, where: str) -> None:
    """Refuses a schema of parameters that is too large, or says what is not understood here.

    Args:
        where: its field, for errors.

    Raises:
        DomainError: INVALID_FIELD with the path of what is wrong.
    """
    if len(json.dumps(schema)) > MOST_BYTES:
        raise invalid(where, f"has more than {MOST_BYTES:,} bytes")
    _known(schema, _ROOT_KEYWORDS, where)
    if schema.get("$schema", DRAFT) != DRAFT:
        raise invalid(f"{where}.$schema", f"must be {DRAFT}")
    if schema.get("type") != "object":
        raise invalid(f"{where}.type", "must be object")
    if schema.get("additionalProperties", False) is not False:
        raise invalid(f"{where}.additionalProperties", "must be false")
    properties: Any = schema.get("properties", {})
    if not isinstance(properties, dict) or len(cast(Json, properties)) > _MOST_PROPERTIES:
        raise invalid(f"{where}.properties", f"must be an object of at most {_MOST_PROPERTIES} parameters")
    for name, given in cast(Json, properties).items():
        at = f"{where}.properties.{name}"
        part = _checked(given, at, 0)
        if "default" not in part:
            raise invalid(f"{at}.default", "must be set: every parameter has a default")
        for path, problem in _violations(part, part["default"], f"{at}.default"):
            raise invalid(path, problem)


def fill(schema: Json, given: Json) -> Json:
    """The parameters with the defaults of those that were not given. They must be without violations."""
    properties: Json = schema.get("properties", {})
    return {name: given.get(name, part["default"]) for name, part in properties.items()}


def violations(schema: Json, given: Json, where: str) -> list[tuple[str, str]]:
    """What is wrong with parameters: for each fault its path and the problem, the first few."""
    found: list[tuple[str, str]] = []
    properties: Json = schema.get("properties", {})
    for name, value in given.items():
        if name not in properties:
            have = ", ".join(properties) or "none"
            found.append((f"{where}.{name}", f"is no parameter; there are: {have}"))
        else:
            found += _violations(properties[name], value, f"{where}.{name}")
    return found[:_MOST_VIOLATIONS]


def _checked(given: Any, where: str, depth: int) -> Json:
    """The schema of one value, which is understood."""
    if not isinstance(given, dict):
        raise invalid(where, "must be a schema")
    part = cast(Json, given)
    if depth > _MOST_DEPTH:
        raise invalid(where, f"is nested deeper than {_MOST_DEPTH} levels")
    _known(part, _KEYWORDS, where)
    for keyword, value in part.items():
        wanted, test = _KEYWORDS[keyword]
        if not test(value):
            raise invalid(f"{where}.{keyword}", f"must be {wanted}")
    if "type" not in part:
        raise invalid(f"{where}.type", "must be set")
    if part["type"] == "object":
        raise invalid(f"{where}.type", "must not be object: parameters are values and lists")
    if part["type"] == "array" and "items" not in part:
        raise invalid(f"{where}.items", "must be set")
    if "items" in part:
        _checked(part["items"], f"{where}.items", depth + 1)
    return part


def _known(schema: Json, keywords: Any, where: str) -> None:
    for keyword in schema:
        if keyword not in keywords:
            raise invalid(f"{where}.{keyword}", f"is no keyword that is understood; there are: {', '.join(keywords)}")


def _violations(part: Json, value: Any, where: str) -> Iterator[tuple[str, str]]:
    kind: str = part["type"]
    if not _TYPES[kind](value):
        yield where, f"must be {'an' if kind[0] in 'aio' else 'a'} {kind}"
        return
    if "enum" in part and not any(_same(value, one) for one in part["enum"]):
        yield where, f"must be one of {', '.join(str(one) for one in part['enum'])}"
    if _is_number(value):
        for keyword, (words, holds) in _BOUNDS.items():
            if keyword in part and not holds(value, part[keyword]):
                yield where, f"must be {words} {part[keyword]:g}"
    for keyword, (sized, words, fits) in _SIZES.items():
        if keyword in part and isinstance(value, sized) and not fits(len(cast(Sized, value)), part[keyword]):
            yield where, f"must have {words.format(part[keyword])}"
    if isinstance(value, list):
        for number, entry in enumerate(cast(list[Any], value)):
            yield from _violations(part["items"], entry, f"{where}[{number}]")


def _same(one: Any, other: Any) -> bool:
    """Equal; true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
