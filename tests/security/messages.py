"""The smallest valid request of any RPC, made from its descriptor: names from the HTTP path, the rest by the rules."""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import protovalidate
from argosy.buf.validate import validate_pb2
from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_VALIDATOR = protovalidate.Validator()
_VARIABLE = re.compile(r"\{([a-z_.]+)=([^}]+)\}")
_ROUNDS = 20


def minimal(method: MethodDescriptor, org: str) -> Message:
    """A valid request of `method` whose names lie in the organization `org`."""
    request = GetMessageClass(method.input_type)()
    for path, template in _VARIABLE.findall(_http_path(method)):
        _set_path(request, path, template.replace("*", org, 1).replace("*", "thing"))
    for _ in range(_ROUNDS):
        violations = _VALIDATOR.collect_violations(request)
        if not violations:
            return request
        for violation in violations:
            where = violation.proto.field
            assert where is not None, violation
            _repair(request, [element.field_name for element in where.elements], org)
    raise AssertionError(f"{method.full_name}: no valid request found, {_VALIDATOR.collect_violations(request)}")


def _http_path(method: MethodDescriptor) -> str:
    rule: Any = method.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]
    return getattr(rule, rule.WhichOneof("pattern")) if rule.WhichOneof("pattern") else ""


def _set_path(message: Any, path: str, value: str) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    setattr(message, last, value)


def _repair(message: Any, path: list[str], org: str) -> None:
    """Gives the field at `path` a value that its rules allow. A repeated field gets one item, its own are repaired in
    the next round."""
    name, *rest = path
    if name in message.DESCRIPTOR.oneofs_by_name:
        name = message.DESCRIPTOR.oneofs_by_name[name].fields[0].name
    field: FieldDescriptor = message.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        items = getattr(message, name)
        if rest:
            for item in items:
                _repair(item, rest, org)
        elif field.message_type is not None:
            items.add()
        else:
            items.append(_value(field, _rules(field).repeated.items, org))
    elif field.message_type is not None:
        getattr(message, name).SetInParent()
        if rest:
            _repair(getattr(message, name), rest, org)
    else:
        setattr(message, name, _value(field, _rules(field), org))


def _rules(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[validate_pb2.field]  # type: ignore[index]


def _value(field: FieldDescriptor, rules: Any, org: str) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values[1].number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"x" * max(1, rules.bytes.min_len)
    if field.type == FieldDescriptor.TYPE_STRING:
        if getattr(rules.string, "in"):
            return next(text for text in getattr(rules.string, "in") if text)
        text = _example(rules.string.pattern) if rules.string.pattern else "x" * max(1, rules.string.min_len)
        return re.sub(r"^orgs/[^/]+", f"orgs/{org}", text)
    # Shares lie between 0 and 1; of the other numbers none must be more than 1.
    return 0.5 if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT) else 1


def _example(pattern: str) -> str:
    """The shortest text that a pattern matches, as far as the contracts' patterns go."""
    return "".join(_pick(code, argument) for code, argument in parser.parse(pattern))


def _pick(code: Any, argument: Any) -> str:
    if code is codes.LITERAL:
        return chr(argument)
    if code is codes.IN:
        kind, what = argument[0]
        return "x" if kind is codes.NEGATE else chr(what[0] if kind is codes.RANGE else what)
    if code is codes.MAX_REPEAT:
        least, _, body = argument
        return "".join(_pick(*part) for part in body) * least
    if code is codes.SUBPATTERN:
        return "".join(_pick(*part) for part in argument[3])
    assert code is codes.AT, code
    return ""
