"""What a row is: its canonical content, its id, and the types of its columns.

A row is a JSON object. Its content leaves out provenance (`row_id`, `source`, `position`), because the same text from
two files is the same row. A column that is null and a column that is missing are the same thing, as in Arrow.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import orjson

from libs.compute.versions import BOOL, DOUBLE, INT, JSON, LONG, STRING, Row

# Bytes of the largest row; also the size of a part, so that a part always holds at least one row.
MAX_ROW_BYTES = 8 * 1024 * 1024
# A file with a new key in every line would otherwise make a table as wide as it is long.
MAX_COLUMNS = 1024
# As in the projection of ReadVersion.
MAX_COLUMN_NAME = 128
# Integers up to here are exact as IEEE 754 doubles (RFC 8785 takes the same bound).
MAX_EXACT_INT = 2**53

# Types of canonical values; that of an integer depends on how large it is.
_KINDS = {str: STRING, bool: BOOL, float: DOUBLE, dict: JSON, list: JSON}
_ROW_ID = re.compile(r"[0-9a-f]{64}")


class RowError(Exception):
    """A row cannot be kept; the message says why, for people."""


def canonical(row: Row) -> tuple[Row, bytes]:
    """The row as it is stored, and the bytes that its id is computed of.

    Numbers follow RFC 8785: an integral double is an integer. NaN and infinities, which JSON does not have, become
    null.

    Raises:
        RowError: The row has too many or unusable columns, is too large, or holds what JSON cannot say.
    """
    plain: Row = {}
    for name, value in row.items():
        if type(value) is not str and type(value) is not int:
            try:
                value = _plain(value)
            except RecursionError as error:
                raise RowError("nested too deeply") from error
            if value is None:
                continue
        plain[name] = value
    if len(plain) > MAX_COLUMNS:
        raise RowError(f"more than {MAX_COLUMNS} columns")
    if not all(map(_is_column_name, plain)):
        raise RowError(f"a column name must have 1 to {MAX_COLUMN_NAME} characters, none of them U+0000")
    try:
        content = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise RowError(f"not representable as JSON: {error}") from error
    if len(content) > MAX_ROW_BYTES:
        raise RowError(f"longer than {MAX_ROW_BYTES} bytes")
    return plain, content


@lru_cache(maxsize=4 * MAX_COLUMNS)
def _is_column_name(name: str) -> bool:
    return 1 <= len(name) <= MAX_COLUMN_NAME and "\x00" not in name


def row_id(content: bytes) -> bytes:
    """SHA-256 of canonical content, 32 bytes."""
    return hashlib.sha256(content).digest()


def split_provenance(row: Row, source: str, position: int) -> tuple[Row, str, int]:
    """Takes provenance out of a row that carries its own.

    A `position` that is not a count and a `row_id` that is not an id are data of the user's: they stay under a name
    with an underscore behind it, because the plain name belongs to us.

    Args:
        row: As read; is changed.
        source: Used when the row has no `source`.
        position: Used when the row has no `position`.

    Returns:
        The row without provenance, its source and its position.
    """
    own_source = row.pop("source", None)
    if own_source is not None:
        source = own_source if isinstance(own_source, str) else orjson.dumps(own_source).decode()
    own_position = row.pop("position", None)
    if type(own_position) is int and 0 <= own_position < 2**63:
        position = own_position
    elif own_position is not None:
        row["position_"] = own_position
    own_id = row.pop("row_id", None)
    if own_id is not None and not (isinstance(own_id, str) and _ROW_ID.fullmatch(own_id)):
        row["row_id_"] = own_id
    return row, source, position


def kind_of_all(values: Sequence[Any]) -> str:
    """The narrowest type that holds all these canonical values; None holds anywhere, so one must be another."""
    types = set(map(type, values))
    types.discard(type(None))
    kinds = {_KINDS[one] for one in types if one is not int}
    if int in types:
        numbers = [value for value in values if type(value) is int]
        kinds.add(_int_kind(min(numbers), max(numbers)))
    return reduce(widen, kinds)


def _int_kind(least: int, most: int) -> str:
    if least >= -MAX_EXACT_INT and most <= MAX_EXACT_INT:
        return INT
    return LONG if least >= -(2**63) and most < 2**63 else JSON


def widen(one: str, other: str) -> str:
    """The narrowest type that holds both without loss; `json` holds everything."""
    if one == other:
        return one
    both = {one, other}
    if both == {INT, LONG}:
        return LONG
    return DOUBLE if both == {INT, DOUBLE} else JSON


def widen_columns(columns: dict[str, str], row: Row) -> None:
    """Makes `columns` (name to type, in order of first appearance) hold `row` too.

    Raises:
        RowError: There would be too many columns; `columns` is unchanged then.
    """
    wider: dict[str, str] = {}
    for name, value in row.items():
        if type(value) is int:
            kind = INT if -MAX_EXACT_INT <= value <= MAX_EXACT_INT else _int_kind(value, value)
        else:
            kind = _KINDS[type(value)]
        seen = columns.get(name)
        if seen != kind:
            wider[name] = kind if seen is None else widen(seen, kind)
    if wider:
        if len(columns) + sum(name not in columns for name in wider) > MAX_COLUMNS:
            raise RowError(f"more than {MAX_COLUMNS} different columns")
        columns.update(wider)


def type_name(kind: str) -> str:
    """The type as `Column.type` names it."""
    return LONG if kind == INT else kind


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) <= MAX_EXACT_INT else value
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
