"""Values inside a specification, named by path: `phases[0].learning_rate`, `architecture.layers`.

A specification is looked at as its JSON, so a path reaches whatever a specification has.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.training.domain.spec import invalid

Json = dict[str, Any]
Value = bool | int | float | str

_STEP = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)|\[(\d+)\]")


def read(document: Json, path: str, field: str) -> Value:
    """The single value at a path.

    Args:
        document: JSON of the specification.
        path: names and indices.
        field: of the request, for the error.

    Raises:
        DomainError: INVALID_FIELD that names the path and what there is instead.
    """
    value: Any = document
    walked = ""
    for step in _steps(path):
        value = _inside(value, step, walked, path, field)
        walked = f"{walked}[{step}]" if isinstance(step, int) else f"{walked}.{step}".lstrip(".")
    if isinstance(value, bool | int | float | str):
        return value
    raise invalid(field, f"names {path}, which {_described(value)}; only single values can be searched")


def with_values(document: Json, values: Mapping[str, Value]) -> Json:
    """A copy of the document with other values at paths that `read` has found."""
    changed = copy.deepcopy(document)
    for path, value in values.items():
        *way, last = _steps(path)
        inside: Any = changed
        for step in way:
            inside = inside[step]
        inside[last] = value
    return changed


def _steps(path: str) -> list[str | int]:
    return [int(index) if index else name for name, index in _STEP.findall(path)]


def _inside(value: Any, step: str | int, walked: str, path: str, field: str) -> Any:
    where = walked or "the specification"
    if isinstance(step, str) and isinstance(value, dict):
        fields: Json = value
        if step in fields:
            return fields[step]
        have = ", ".join(sorted(fields)) or "nothing"
        raise invalid(field, f"names {path}, but {where} has no {step!r}; it has {have}")
    if isinstance(step, int) and isinstance(value, Sequence) and not isinstance(value, str):
        entries: Sequence[Any] = value
        if step < len(entries):
            return entries[step]
        raise invalid(field, f"names {path}, but {where} has {len(entries)} entries, numbered from 0")
    raise invalid(field, f"names {path}, but {where} {_described(value)}")


def _described(value: Any) -> str:
    """What a value is that a path cannot use."""
    if value is None:
        return "is not set"
    if isinstance(value, dict):
        fields: Json = value
        return f"is a group of {', '.join(sorted(fields)) or 'nothing'}"
    return "is a single value" if isinstance(value, bool | int | float | str) else "is a list"
