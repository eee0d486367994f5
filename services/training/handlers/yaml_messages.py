"""Messages as YAML and back, by their descriptors: whatever field a proto has, a document has."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from typing import Any, cast

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.common.errors import ArgosyError, invalid_field

Json = dict[str, Any]

_MOST_DEPTH = 24
_FREE = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})
_INTEGERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
_REALS = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})
_NULL = "tag:yaml.org,2002:null"
_BOOLEANS = {"true": True, "false": False}
# Larger ones are no whole numbers of 64 bits.
_MOST_DIGITS = 20


class Reader:
    """Reads messages from a document.

    Attributes:
        lines: where each field stands, by its path; counted from 1.
    """

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}

    def pairs(self, node: yaml.Node, path: str) -> dict[str, yaml.Node]:
        """The entries of a mapping. Raises INVALID_FIELD for what is none, and for a key that comes twice."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fault(path, "must be a mapping of fields", node)
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fault(path, "has a key that is no name", key)
            at = _under(path, key.value)
            self.lines[at] = key.start_mark.line + 1
            if key.value in found:
                raise self.fault(at, "comes twice")
            found[key.value] = value
        return found

    def read(self, pairs: dict[str, yaml.Node], message: Message, path: str, allowed: Collection[str]) -> None:
        """Sets the fields of a message.

        Args:
            allowed: names that may be there; those that the message does not have are left to the caller.

        Raises:
            ArgosyError: INVALID_FIELD with line, path and what is allowed.
        """
        fields = message.DESCRIPTOR.fields_by_name
        for name, node in pairs.items():
            at = _under(path, name)
            if name not in allowed:
                raise self.fault(at, _unknown(name, allowed), node)
            if name in fields and node.tag != _NULL:
                self._set(message, cast("FieldDescriptor", fields[name]), node, at)

    def fault(self, path: str, problem: str, node: yaml.Node | None = None) -> ArgosyError:
        """INVALID_FIELD with the line of a node, or of the field."""
        line = self.lines.get(path) or (node.start_mark.line + 1 if node is not None else 0)
        return invalid_field(path or "yaml", f"{problem} (line {line})" if line else problem)

    def _set(self, message: Message, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        group = field.containing_oneof
        if group is not None and (other := message.WhichOneof(group.name)) is not None:
            raise self.fault(path, f"cannot stand beside {other}: one of them may be given", node)
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            self._set_map(message, field, node, path)
        elif field.is_repeated:
            self._set_list(message, field, node, path)
        elif kind is not None:
            inner = getattr(message, field.name)
            # An empty one is there too.
            inner.SetInParent()
            self._fill(inner, node, path)
        else:
            setattr(message, field.name, self._scalar(field, node, path))

    def _set_map(self, message: Message, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        value = field.message_type.fields_by_name["value"]  # pyrefly: ignore[missing-attribute]
        entries = getattr(message, field.name)
        for key, entry in self.pairs(node, path).items():
            entries[key] = self._scalar(value, entry, _under(path, key))

    def _set_list(self, message: Message, field: FieldDescriptor, node: yaml.Node, path: str) -> None:
        if not isinstance(node, yaml.SequenceNode):
            raise self.fault(path, "must be a list", node)
        entries = getattr(message, field.name)
        for index, entry in enumerate(node.value):
            at = f"{path}[{index}]"
            self.lines[at] = entry.start_mark.line + 1
            if field.message_type is not None:
                self._fill(entries.add(), entry, at)
            else:
                entries.append(self._scalar(field, entry, at))

    def _fill(self, message: Message, node: yaml.Node, path: str) -> None:
        if message.DESCRIPTOR.full_name in _FREE:
            try:
                json_format.ParseDict(self._plain(node, path, 0), message)
            except json_format.ParseError:
                raise self.fault(path, "must be a mapping of values", node) from None
            return
        self.read(self.pairs(node, path), message, path, message.DESCRIPTOR.fields_by_name)

    def _scalar(self, field: FieldDescriptor, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self.fault(path, f"must be {_wanted(field)}", node)
        text = node.value
        if field.enum_type is not None:
            names = _short_names(field.enum_type)
            full = field.enum_type.values_by_name
            if text in full and full[text].number:
                return full[text].number
            if text.lower() not in names:
                raise self.fault(path, f"must be {_wanted(field)}{_nearest(text, names)}", node)
            return names[text.lower()]
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING and field.type != FieldDescriptor.TYPE_BYTES:
            return text
        try:
            if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
                return _BOOLEANS[text.lower()]
            if field.cpp_type in _INTEGERS:
                return _fitting(field, _whole(text))
            if field.cpp_type in _REALS:
                return _real(text)
        except (KeyError, ValueError):
            pass
        raise self.fault(path, f"must be {_wanted(field)}, not {text[:60]!r}", node)

    def _plain(self, node: yaml.Node, path: str, depth: int) -> Any:
        """A value whose kind the document says."""
        if depth > _MOST_DEPTH:
            raise self.fault(path, f"is nested deeper than {_MOST_DEPTH} levels", node)
        if isinstance(node, yaml.MappingNode):
            pairs = self.pairs(node, path)
            return {key: self._plain(value, _under(path, key), depth + 1) for key, value in pairs.items()}
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(value, f"{path}[{index}]", depth + 1) for index, value in enumerate(node.value)]
        if node.tag == _NULL:
            return None
        # Text in quotes is text.
        if isinstance(node, yaml.ScalarNode) and node.style is not None:
            return node.value
        for parse in (_BOOLEANS.__getitem__, _whole, _real):
            try:
                return parse(node.value)
            except (KeyError, ValueError):
                continue
        return node.value


def plain(message: Message, names: Collection[str] | None = None) -> Json:
    """A message as values that YAML writes and `Reader` reads as the same message; what is not set is left out.

    Args:
        names: fields of it; None: all.
    """
    result: Json = {}
    for field, value in message.ListFields():
        if names is not None and field.name not in names:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            result[field.name] = {key: _value_of(field, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            result[field.name] = [_value_of(field, one) for one in value]
        else:
            result[field.name] = _value_of(field, value)
    return result


def write(document: Json) -> str:
    """YAML."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Plain values; texts of several lines as blocks."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def _value_of(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return _free(value) if value.DESCRIPTOR.full_name in _FREE else plain(value)
    if field.enum_type is not None:
        return {number: name for name, number in _short_names(field.enum_type).items()}.get(value, value)
    return value


def _free(message: Message) -> Any:
    return _whole_numbers(json_format.MessageToDict(message))


def _whole_numbers(value: Any) -> Any:
    """JSON in the order of its keys, with whole numbers as such: Struct knows no order, and doubles only."""
    if isinstance(value, dict):
        return {key: _whole_numbers(one) for key, one in sorted(cast("Json", value).items())}
    if isinstance(value, list):
        return [_whole_numbers(one) for one in cast("list[Any]", value)]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _short_names(enum: EnumDescriptor) -> dict[str, int]:
    """`METHOD_SFT` as `sft`; what stands for nothing is left out."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    return {value.name.removeprefix(prefix).lower(): value.number for value in enum.values if value.number}


def _wanted(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return f"one of {', '.join(_short_names(field.enum_type))}"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type in _INTEGERS:
        return "a whole number"
    return "a number" if field.cpp_type in _REALS else "a text"


def _unknown(name: str, allowed: Collection[str]) -> str:
    return f"is no field{_nearest(name, allowed)}; there are: {', '.join(sorted(allowed))}"


def _nearest(name: str, allowed: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:100], sorted(allowed), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError
    return int(text)


def _fitting(field: FieldDescriptor, value: int) -> int:
    bits = 32 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not least <= value <= most:
        raise ValueError
    return value


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
