"""The language of MLflow's searches: comparisons joined by AND.

metrics.accuracy > 0.9 AND params.`learning rate` = '0.1' AND tags.team IN ('nlp') AND attributes.status = 'FINISHED'

https://mlflow.org/docs/latest/search-runs
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.gateway.http.mlflow.errors import ParameterError

_KINDS = {
    "metric": "metric",
    "metrics": "metric",
    "param": "param",
    "params": "param",
    "parameter": "param",
    "parameters": "param",
    "tag": "tag",
    "tags": "tag",
    "attribute": "attribute",
    "attributes": "attribute",
    "attr": "attribute",
    "run": "attribute",
}
_FIELD = re.compile(r"(?:([A-Za-z]+)\.)?(?:`([^`]+)`|\"([^\"]+)\"|([A-Za-z_][\w./:-]*))")
_OPERATOR = re.compile(r"<=|>=|!=|=|<|>|(?:NOT\s+)?IN(?=[\s(])|I?LIKE(?=[\s'\"])|IS(?=\s)", re.IGNORECASE)
_TEXT = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
_AND = re.compile(r"AND(?=\s)", re.IGNORECASE)
_SPACE = re.compile(r"\s*")
_MOST = 20


@dataclass(frozen=True)
class Comparison:
    """One condition.

    Attributes:
        kind: `metric`, `param`, `tag` or `attribute`.
        operator: in upper case, with one space.
        texts, number: what is compared with, one of them.
    """

    kind: str
    key: str
    operator: str
    texts: tuple[str, ...] = ()
    number: float | None = None


def parse_filter(text: str) -> list[Comparison]:
    """The comparisons of a filter. Raises ParameterError that names the character where it cannot be read."""
    found: list[Comparison] = []
    at = _skip(text, 0)
    while at < len(text):
        if found:
            at = _skip(text, _expect(_AND, text, at, "AND").end())
        if len(found) == _MOST:
            raise ParameterError("filter", f"has more than {_MOST} comparisons")
        field = _expect(_FIELD, text, at, "a field such as metrics.loss")
        kind, key = _kind_and_key(field, "filter")
        operator = _expect(_OPERATOR, text, _skip(text, field.end()), "one of = != < <= > >= LIKE ILIKE IN NOT IN")
        sign = " ".join(operator[0].upper().split())
        if sign == "IS":
            raise ParameterError("filter", "IS NULL and IS NOT NULL are not supported here")
        at = _skip(text, operator.end())
        texts, number, at = _list(text, at) if sign.endswith("IN") else _value(text, at)
        found.append(Comparison(kind, key, sign, texts, number))
        at = _skip(text, at)
    return found


def parse_order(text: str) -> tuple[str, str, bool]:
    """Kind, key and whether the greatest comes first. Raises ParameterError."""
    name, _, direction = text.strip().rpartition(" ")
    if direction.upper() not in ("ASC", "DESC"):
        name, direction = text, ""
    field = _FIELD.fullmatch(name.strip())
    if field is None:
        raise ParameterError("order_by", f"{text[:100]!r} is no field with ASC or DESC behind it")
    kind, key = _kind_and_key(field, "order_by")
    return kind, key, direction.upper() == "DESC"


def _kind_and_key(field: re.Match[str], where: str) -> tuple[str, str]:
    prefix, *keys = field.groups()
    key = next(key for key in keys if key is not None)
    if prefix is None:
        return "attribute", key
    if prefix.lower() not in _KINDS:
        raise ParameterError(where, f"{prefix[:50]!r} is not one of metrics, params, tags, attributes")
    return _KINDS[prefix.lower()], key


def _value(text: str, at: int) -> tuple[tuple[str, ...], float | None, int]:
    quoted = _TEXT.match(text, at)
    if quoted is not None:
        return (quoted[1] if quoted[1] is not None else quoted[2],), None, quoted.end()
    number = _expect(_NUMBER, text, at, "a number or a text in quotes")
    return (), float(number[0]), number.end()


def _list(text: str, at: int) -> tuple[tuple[str, ...], float | None, int]:
    if text[at : at + 1] != "(":
        raise _wrong(text, at, "a list in brackets")
    found: list[str] = []
    at = _skip(text, at + 1)
    while text[at : at + 1] != ")":
        if found:
            if text[at : at + 1] != ",":
                raise _wrong(text, at, ", or )")
            at = _skip(text, at + 1)
        quoted = _expect(_TEXT, text, at, "a text in quotes")
        found.append(quoted[1] if quoted[1] is not None else quoted[2])
        at = _skip(text, quoted.end())
    return tuple(found), None, at + 1


def _expect(pattern: re.Pattern[str], text: str, at: int, what: str) -> re.Match[str]:
    matched = pattern.match(text, at)
    if matched is None:
        raise _wrong(text, at, what)
    return matched


def _wrong(text: str, at: int, what: str) -> ParameterError:
    found = f", found {text[at : at + 20]!r}" if at < len(text) else ""
    return ParameterError("filter", f"at character {at + 1}: expected {what}{found}")


def _skip(text: str, at: int) -> int:
    matched = _SPACE.match(text, at)
    return matched.end() if matched else at
