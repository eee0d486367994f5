"""What would be wrong about a training of an algorithm, found before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.training.domain.algorithms import Entry, Role
from services.training.domain.preflight import DataFacts, Finding

Json = dict[str, Any]

_NUMBERS = frozenset({"int53", "int64", "double"})
# Types that a column of each role may have; a role that is not here takes any.
_ROLE_TYPES = {
    Role.LABEL: frozenset({"string", "int53", "int64", "bool"}),
    Role.NUMBER: _NUMBERS,
    Role.TARGET: frozenset({"string", "int53", "int64", "double", "bool"}),
    Role.TEXT: frozenset({"string", "int53", "int64", "double", "bool"}),
    Role.FILE: frozenset({"string"}),
    Role.FEATURES: frozenset({"string", "int53", "int64", "double", "bool"}),
}
_SHOWN_ROWS = 10
# Held in memory at once: an input of a table in single precision and twice more while a model is fitted; the n-grams of
# a text; the pixels of an image.
_CELL_BYTES = 12
_TEXT_BYTES = 4_000


def preflight_algorithm(
    entry: Entry, parameters: Json, data: Sequence[DataFacts], memory_bytes: int
) -> tuple[list[Finding], int]:
    """Everything that was found, blocking first, and the bytes of memory that a run needs.

    Args:
        parameters: all of them.
        data: the version to learn from first, then the held-out one if there is one; empty: it reads none.
        memory_bytes: of the machine; 0: unknown.
    """
    findings = [finding for facts in data for finding in _columns(entry, parameters, facts)]
    if data and not findings:
        findings += _answers(entry, parameters, data[0])
    need = _memory(entry, parameters, data)
    if memory_bytes and need > memory_bytes * 0.8:
        message = f"It needs about {need / 2**30:.1f} GiB of memory; this machine has {memory_bytes / 2**30:.1f}."
        findings.append(Finding("memory", need > memory_bytes, message))
    return sorted(findings, key=lambda finding: not finding.blocking), need


def _columns(entry: Entry, parameters: Json, facts: DataFacts) -> list[Finding]:
    findings: list[Finding] = []
    if not facts.row_count:
        return [Finding("schema", True, f"{facts.what} {facts.name} has no rows.")]
    have = ", ".join(facts.columns) or "none"
    seen: dict[str, str] = {}
    for parameter, role in entry.columns.items():
        named: list[str] = parameters[parameter] if role is Role.FEATURES else [parameters[parameter]]
        # An empty name is a column that the algorithm can do without.
        for name in filter(None, named):
            if name in seen:
                message = f"Column {name!r} is named by {seen[name]} and by {parameter}."
                findings.append(Finding("schema", True, message))
            seen[name] = parameter
            kind = facts.columns.get(name)
            if kind is None:
                message = f"{parameter} names column {name!r}, which {facts.what} has not; it has {have}."
                findings.append(Finding("schema", True, message))
            elif kind not in _ROLE_TYPES.get(role, {kind}):
                wanted = ", ".join(sorted(_ROLE_TYPES[role]))
                message = f"{parameter} names column {name!r} of {facts.what}, which holds {kind}; it needs {wanted}."
                findings.append(Finding("schema", True, message))
        if role is Role.FEATURES and not named:
            findings += _left_over(entry, parameters, facts)
    return findings


def _left_over(entry: Entry, parameters: Json, facts: DataFacts) -> list[Finding]:
    """The columns that nobody named are read as features: at least one must be able to be one."""
    others = [parameters[parameter] for parameter, role in entry.columns.items() if role is not Role.FEATURES]
    able = [name for name, kind in facts.columns.items() if kind in _ROLE_TYPES[Role.FEATURES] and name not in others]
    if able:
        return []
    return [Finding("schema", True, f"{facts.what} has no column beside {', '.join(others)} to tell it from.")]


def _answers(entry: Entry, parameters: Json, facts: DataFacts) -> list[Finding]:
    """Rows without the right answer, and answers that are all the same. Only the sample is known here."""
    whole = len(facts.sample) >= facts.row_count
    findings: list[Finding] = []
    for parameter, role in entry.columns.items():
        if not role.is_answer or not facts.sample:
            continue
        column: str = parameters[parameter]
        missing = [number for number, row in enumerate(facts.sample, 1) if not row.get(column)]
        values = {row[column] for row in facts.sample if row.get(column)}
        among = f"{facts.what}" if whole else f"the first {len(facts.sample)} rows of {facts.what}"
        if not values:
            findings.append(Finding("labels", whole, f"No row of {among} has a value in {column!r}."))
        elif missing:
            message = f"{_rows(missing)} of {facts.what} {_have(missing)} no value in {column!r}; they are left out."
            findings.append(Finding("labels", False, message))
        if role in (Role.LABEL, Role.TARGET) and len(values) == 1:
            message = f"All rows of {among} have the same value in {column!r}, {min(values)[:50]!r}."
            findings.append(Finding("labels", whole, message))
    return findings


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN_ROWS])
    more = f" and {len(numbers) - _SHOWN_ROWS} more" if len(numbers) > _SHOWN_ROWS else ""
    return f"Row {shown}" if len(numbers) == 1 else f"Rows {shown}{more}"


def _have(numbers: Sequence[int]) -> str:
    return "has" if len(numbers) == 1 else "have"


def _memory(entry: Entry, parameters: Json, data: Sequence[DataFacts]) -> int:
    rows, columns = sum(facts.row_count for facts in data), max((len(facts.columns) for facts in data), default=0)
    size = parameters.get("size", 0)
    a_row = {"table": columns * _CELL_BYTES, "text": _TEXT_BYTES, "image": 3 * size * size}.get(entry.reads, 0)
    return entry.needs.memory_bytes + rows * a_row
