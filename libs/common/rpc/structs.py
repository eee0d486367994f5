"""JSON objects of callers."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf import struct_pb2

from libs.common.errors import invalid_field

# Deeper ones are nothing that a page could show.
_MOST_DEPTH = 32


def from_struct(message: struct_pb2.Struct, field: str, most_bytes: int) -> dict[str, Any]:
    """A message as JSON; whole numbers become integers, as JSON text would give them.

    Args:
        message: as the caller sent it.
        field: name of the field in errors.
        most_bytes: of the message.

    Raises:
        ArgosyError: INVALID_FIELD for what is too large or too deep, for numbers that are none and for NUL characters,
            which the database does not take.
    """
    if message.ByteSize() > most_bytes:
        raise invalid_field(field, f"has {message.ByteSize():,} bytes; {most_bytes:,} at most")
    return _fields(message, field, 0)


def _fields(message: struct_pb2.Struct, field: str, depth: int) -> dict[str, Any]:
    if depth > _MOST_DEPTH:
        raise invalid_field(field, f"is nested deeper than {_MOST_DEPTH} levels")
    result: dict[str, Any] = {}
    for key, value in message.fields.items():
        if "\0" in key:
            raise invalid_field(field, "has a key with a NUL character")
        result[key] = _value(value, field, depth)
    return result


def _value(value: struct_pb2.Value, field: str, depth: int) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise invalid_field(field, "has a number that is none")
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "string_value":
            if "\0" in value.string_value:
                raise invalid_field(field, "has a text with a NUL character")
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _fields(value.struct_value, field, depth + 1)
        case "list_value":
            if depth > _MOST_DEPTH:
                raise invalid_field(field, f"is nested deeper than {_MOST_DEPTH} levels")
            return [_value(entry, field, depth + 1) for entry in value.list_value.values]
        case _:
            return None
