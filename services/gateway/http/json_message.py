"""JSON into protobuf messages by the proto3 JSON mapping, with every fault named by its field path.

`google.protobuf.json_format` stops at the first fault and names it by the Python type at hand. A caller of the gateway
gets all faults of a body, each with the path of its field. The well-known types (timestamps, masks, structs, ...) are
left to json_format.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf import field_mask_pb2, json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.common.errors import ArgosyError

# protobuf refuses to decode messages nested deeper than 100; the other side would only say that it cannot read it.
MAX_DEPTH = 90
# More faults than this tell nobody anything.
_MAX_FAULTS = 20
_SHOWN = 80
_WHOLE = re.compile(r"-?[0-9]{1,20}\Z")

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_FLOATS = {FieldDescriptor.CPPTYPE_DOUBLE: math.inf, FieldDescriptor.CPPTYPE_FLOAT: 3.4028234663852886e38}
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}
_SPECIAL_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _Fault(Exception):
    """What is wrong with one value."""


class Faults:
    """The faults of one request, as (field path, description)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def add(self, path: str, description: str) -> None:
        if len(self.found) < _MAX_FAULTS:
            self.found.append((path, description))

    def raise_if_any(self) -> None:
        """Raises INVALID_FIELD with all that was found."""
        if self.found:
            field, description = self.found[0]
            raise ArgosyError(
                "INVALID_FIELD", f"{field}: {description}", metadata={"field": field}, violations=self.found
            )


def fill(message: Message, value: Any, faults: Faults, path: str = "", depth: int = 0) -> None:
    """Writes a JSON object into a message.

    Args:
        message: written to; fields that the object lacks stay as they are.
        value: what the JSON parser gave.
        faults: gets every fault; the message is not to be used when there is one.
        path: of the message inside the request, for the faults.
        depth: of nesting.
    """
    descriptor = message.DESCRIPTOR
    if depth > MAX_DEPTH:
        faults.add(path, f"nested deeper than {MAX_DEPTH}")
        return
    if is_well_known(descriptor):
        _fill_well_known(message, value, faults, path)
        return
    if not isinstance(value, Mapping):
        faults.add(path or "body", f"must be an object, not {kind_of(value)}")
        return
    seen: set[str] = set()
    for key, item in value.items():
        field = field_by_name(descriptor, key)
        inner = f"{path}.{key}" if path else str(key)
        if field is None:
            faults.add(inner[:256], "no such field")
        elif field.name in seen or _oneof_taken(field, seen, value):
            faults.add(inner, "given twice, or together with another field that excludes it")
        elif item is not None or _takes_null(field):
            seen.add(field.name)
            _fill_field(message, field, item, faults, f"{path}.{field.name}" if path else field.name, depth)


def field_by_name(descriptor: Any, name: str) -> FieldDescriptor | None:
    """The field of this name, in the spelling of the proto or of JSON."""
    return descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map."""
    return field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry


def is_well_known(descriptor: Any) -> bool:
    """Whether JSON writes the message in a way of its own: timestamps, durations, masks, structs, wrappers."""
    return descriptor.file.package == "google.protobuf" and descriptor.file.name != "google/protobuf/descriptor.proto"


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return kinds.get(type(value), "something else")


def _oneof_taken(field: FieldDescriptor, seen: set[str], value: Mapping[str, Any]) -> bool:
    oneof = field.containing_oneof
    return oneof is not None and any(other.name in seen for other in oneof.fields)


def _takes_null(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"


def _fill_field(message: Message, field: FieldDescriptor, value: Any, faults: Faults, path: str, depth: int) -> None:
    if is_map(field):
        _fill_map(message, field, value, faults, path, depth)
    elif field.is_repeated:
        _fill_list(message, field, value, faults, path, depth)
    elif field.message_type is not None:
        target = getattr(message, field.name)
        target.SetInParent()
        fill(target, value, faults, path, depth + 1)
    else:
        try:
            setattr(message, field.name, _scalar(field, value))
        except _Fault as fault:
            faults.add(path, str(fault))


def _fill_list(message: Message, field: FieldDescriptor, value: Any, faults: Faults, path: str, depth: int) -> None:
    if not isinstance(value, list):
        faults.add(path, f"must be an array, not {kind_of(value)}")
        return
    target = getattr(message, field.name)
    for index, item in enumerate(value):
        place = f"{path}[{index}]"
        if field.message_type is not None:
            fill(target.add(), item, faults, place, depth + 1)
            continue
        try:
            target.append(_scalar(field, item))
        except _Fault as fault:
            faults.add(place, str(fault))


def _fill_map(message: Message, field: FieldDescriptor, value: Any, faults: Faults, path: str, depth: int) -> None:
    if not isinstance(value, Mapping):
        faults.add(path, f"must be an object, not {kind_of(value)}")
        return
    entry: Any = field.message_type
    key_field, value_field = entry.fields_by_name["key"], entry.fields_by_name["value"]
    target = getattr(message, field.name)
    for key, item in value.items():
        place = f"{path}[{str(key)[:_SHOWN]}]"
        try:
            # The keys of a JSON object are strings, also those that stand for numbers and booleans.
            actual = _scalar(key_field, {"true": True, "false": False}.get(key, key) if _is_bool(key_field) else key)
            if value_field.message_type is not None:
                fill(target[actual], item, faults, place, depth + 1)
            else:
                target[actual] = _scalar(value_field, item)
        except _Fault as fault:
            faults.add(place, str(fault))


def _fill_well_known(message: Any, value: Any, faults: Faults, path: str) -> None:
    if isinstance(message, field_mask_pb2.FieldMask) and isinstance(value, str) and "_" in value:
        # The mapping asks for camelCase; who copies the names from the proto means the same.
        message.paths.extend(value.split(","))
        return
    if _holds_null(value):
        faults.add(path, "holds a null character")
        return
    try:
        json_format.ParseDict(cast(Any, value), message, max_recursion_depth=MAX_DEPTH)
    except (json_format.Error, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        faults.add(path, f"is not a {message.DESCRIPTOR.name} in the JSON mapping of protobuf")


def _holds_null(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any(_holds_null(key) or _holds_null(item) for key, item in value.items())
    return isinstance(value, list) and any(_holds_null(item) for item in value)


def _is_bool(field: FieldDescriptor) -> bool:
    return field.cpp_type == FieldDescriptor.CPPTYPE_BOOL


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    if field.cpp_type in _INTEGERS:
        return _integer(value, *_INTEGERS[field.cpp_type])
    if field.cpp_type in _FLOATS:
        return _float(value, _FLOATS[field.cpp_type])
    if _is_bool(field):
        if not isinstance(value, bool):
            raise _Fault(f"must be true or false, not {kind_of(value)}")
        return value
    if not isinstance(value, str):
        raise _Fault(f"must be a string, not {kind_of(value)}")
    return _bytes(value) if field.type == FieldDescriptor.TYPE_BYTES else _text(value)


def _text(value: str) -> str:
    # PostgreSQL text cannot hold it, and no text that a person writes does.
    if "\0" in value:
        raise _Fault("holds a null character")
    return value


def _bytes(value: str) -> bytes:
    try:
        # Both alphabets, with or without padding, as the mapping asks of readers.
        text = value.replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise _Fault("is not base64") from None


def _enum(descriptor: EnumDescriptor, value: Any) -> int:
    if isinstance(value, str):
        known = descriptor.values_by_name.get(value)
        if known is not None:
            return known.number
    # Not values_by_number: it looks at the last 32 bits of a number only.
    elif (
        isinstance(value, int) and not isinstance(value, bool) and any(one.number == value for one in descriptor.values)
    ):
        return value
    names = ", ".join(known.name for known in descriptor.values[:12])
    raise _Fault(f"must be one of {names}")


def _integer(value: Any, least: int, most: int) -> int:
    number: int | None = None
    if isinstance(value, bool):
        pass
    elif isinstance(value, int):
        number = value
    elif (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and _WHOLE.match(value)):
        number = int(value)
    if number is None:
        raise _Fault("must be a whole number")
    if not least <= number <= most:
        raise _Fault(f"must lie between {least} and {most}")
    return number


def _float(value: Any, most: float) -> float:
    number: float | None = None
    if isinstance(value, str):
        number = _SPECIAL_FLOATS.get(value)
        if number is None and len(value) <= _SHOWN:
            try:
                number = float(value)
            except ValueError:
                number = None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if number is None:
        raise _Fault("must be a number")
    if math.isfinite(number) and abs(number) > most:
        raise _Fault("is too large")
    return number
