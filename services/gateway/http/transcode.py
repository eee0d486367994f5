"""From an HTTP request to the message of an RPC, and from its answer to JSON.

Follows google/api/http.proto: variables of the path, then the body (all of it, or one field), then the query for what
is left.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from libs.common.errors import ArgosyError
from services.gateway.http.json_message import Faults, field_by_name, fill, is_map, is_well_known
from services.gateway.http.routes import Match

# More parameters than any request has fields.
_MAX_PARAMETERS = 256
_BOOLEANS = {"true": True, "false": False}


def parse_json(body: bytes) -> Any:
    """The value of a JSON body. Raises BODY_INVALID with the position of the fault."""
    if not body:
        return {}
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        position = {"line": str(error.lineno), "column": str(error.colno), "position": str(error.pos)}
        raise ArgosyError(
            "BODY_INVALID",
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            metadata=position,
        ) from None


def build_request(match: Match, query: bytes, body: bytes) -> Message:
    """The message that the RPC gets.

    Args:
        match: the route and the values of its path.
        query: what stands behind the question mark, still encoded.
        body: of the request; empty for none.

    Raises:
        ArgosyError: BODY_INVALID if the body is not JSON, INVALID_FIELD with every field at fault.
    """
    route = match.route
    message: Message = route.request_class()
    faults = Faults()
    if route.body == "*":
        fill(message, parse_json(body), faults)
    elif route.body:
        target = getattr(message, route.body)
        target.SetInParent()
        fill(target, parse_json(body), faults, route.body)
    elif body.strip():
        raise ArgosyError("BODY_INVALID", "This route takes no body.")
    _fill_query(message, query, route.body, {name for name, _ in match.values}, faults)
    for name, value in match.values:
        _set_from_path(message, name, value, faults)
    faults.raise_if_any()
    return message


def _set_from_path(message: Message, path: str, value: str, faults: Faults) -> None:
    *parents, last = path.split(".")
    target: Any = message
    for parent in parents:
        target = getattr(target, parent)
    given = getattr(target, last)
    if given and given != value:
        faults.add(path, "differs from the path of the URL")
    setattr(target, last, value)


def parse_query(query: bytes, faults: Faults) -> dict[str, list[str]]:
    """The parameters of a query string, in order; those that are not UTF-8 become faults."""
    parameters: dict[str, list[str]] = {}
    pieces = query.split(b"&") if query else []
    if len(pieces) > _MAX_PARAMETERS:
        faults.add("query", f"more than {_MAX_PARAMETERS} parameters")
        return parameters
    for piece in pieces:
        if not piece:
            continue
        key, _, value = piece.replace(b"+", b" ").partition(b"=")
        try:
            name, text = unquote_to_bytes(key).decode(), unquote_to_bytes(value).decode()
        except UnicodeDecodeError:
            faults.add(key.decode("ascii", "replace")[:80], "is not UTF-8")
        else:
            parameters.setdefault(name, []).append(text)
    return parameters


def _fill_query(message: Message, query: bytes, body: str, in_path: set[str], faults: Faults) -> None:
    for name, values in parse_query(query, faults).items():
        fields = _field_path(message.DESCRIPTOR, name)
        shown = name[:256] or "query"
        if fields is None:
            faults.add(shown, "no such field")
            continue
        path = ".".join(field.name for field in fields)
        if path in in_path:
            faults.add(shown, "is given by the path of the URL")
        elif body == "*" or fields[0].name == body:
            faults.add(shown, "belongs into the body")
        elif len(values) > 1 and not fields[-1].is_repeated:
            faults.add(shown, "given more than once")
        else:
            _set_from_query(message, fields, values, path, faults)


def _field_path(descriptor: Any, name: str) -> list[FieldDescriptor] | None:
    """The fields that a dotted name goes through; None if it names none that a query can give."""
    found: list[FieldDescriptor] = []
    current: Any = descriptor
    for part in name.split("."):
        field = field_by_name(current, part) if current is not None else None
        if field is None or is_map(field) or (found and found[-1].is_repeated):
            return None
        found.append(field)
        current = field.message_type
        if current is not None and is_well_known(current):
            current = None
    last = found[-1].message_type
    return None if last is not None and not is_well_known(last) else found


def _set_from_query(
    message: Message, fields: list[FieldDescriptor], values: list[str], path: str, faults: Faults
) -> None:
    *parents, last = fields
    target: Any = message
    for parent in parents:
        target = getattr(target, parent.name)
        target.SetInParent()
    converted = [_from_text(last, value) for value in values]
    # One object with one field: the rules for JSON values hold here too.
    value: Any = converted if last.is_repeated else converted[0]
    prefix = path.rpartition(".")[0]
    fill(target, {last.name: value}, faults, prefix)


def _from_text(field: FieldDescriptor, text: str) -> Any:
    if field.enum_type is not None and text.lstrip("-").isdigit() and len(text) < 12:
        return int(text)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _BOOLEANS.get(text, text)
    return text


def to_json(message: Message) -> bytes:
    """The proto3 JSON of a message: lowerCamelCase, 64-bit integers as strings, enums by name, defaults left out."""
    return orjson.dumps(json_format.MessageToDict(message))
