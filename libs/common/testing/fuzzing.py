"""Requests for fuzzing, made from descriptors: mostly right, deliberately wrong, and bytes that are no message at all.

A right request obeys the rules that stand beside its fields (protovalidate) and speaks of resources that earlier calls
made, so that it comes past the validation. A hostile one is a right one with fields appended in wire format: the last
value of a field wins, so that any value can be put anywhere, also those that the protobuf library refuses to write.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from argosy.buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_IDS = ("one", "two", "x-9")
_TASK_AREAS = ("dataset", "training", "deploy", "eval")
# Deeper messages are left out of right requests; hostile ones go on below that.
_DEPTH = 4
_KNOWN_PER_KIND = 16
# The longest name of a resource: a text of this length is one.
_NAME_LENGTH = 512
_VARINT, _FIXED64, _LENGTH, _START_GROUP, _FIXED32 = 0, 1, 2, 3, 5
_HIGHEST_FIELD = (1 << 29) - 1

_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: 32,
    FieldDescriptor.CPPTYPE_UINT32: 32,
    FieldDescriptor.CPPTYPE_INT64: 64,
    FieldDescriptor.CPPTYPE_UINT64: 64,
}
_UNSIGNED = (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)

# `{dataset.name=orgs/*/datasets/*}` in a route: the request's resource and its template.
_NAMED = re.compile(r"\{(\w+)\.name=([^}]+)\}")

HOSTILE_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b[31m\r\n\x7f",
    "\u202eabc\u2066",
    "\ufeff\ufffe\U0010ffff",
    "e\u0301" * 40,
    "\U0001f600" * 300,
    "a" * 513,
    "a" * 100_000,
    "orgs/acme/datasets/../../../etc/passwd",
    "orgs/other/datasets/one",
    "orgs/acme/datasets/one\n",
    "orgs//datasets/",
    "orgs/ACME",
    "/" * 600,
    "*",
    "../../..",
    "file:///etc/passwd",
    "'; DROP TABLE datasets; --",
    "{0.__class__} %s %n ${jndi:x}",
    "2026-13-45T99:99:99Z",
    "-1",
    "1e999",
    "AAAA",
    "[" * 5000,
    '{"a":' * 300,
)
_HOSTILE_BYTES = (b"", b"\xff\xfe\xc3(", b"\xed\xa0\x80", b"\0" * 1000, b"PK\x03\x04" * 8, b"\x80" * 70_000)
_HOSTILE_INTEGERS = (-1, 0, 1, (1 << 31) - 1, -(1 << 31), (1 << 32), (1 << 53) + 1, (1 << 63) - 1, -(1 << 63), 999)
_HOSTILE_FLOATS = (float("nan"), float("inf"), float("-inf"), -0.0, -1.0, 5e-324, 1.7e308, 2.0**64)


class Names:
    """Names of resources, by template: those that answers showed, and some that may not exist.

    Args:
        org: the organization of the caller; empty for one that works across organizations.
    """

    def __init__(self, org: str = "acme") -> None:
        self._org = org
        self._known: dict[str, list[str]] = {}

    def learn(self, message: Message) -> None:
        """Keeps the names in an answer; the newest replace the oldest."""
        for name in _names_in(message, _DEPTH):
            self.add(name)

    def add(self, name: str) -> None:
        """Keeps a name, unless it is of another organization or of none."""
        if name.count("/") < 3 or not name.startswith(f"orgs/{self._org}"):
            return
        known = self._known.setdefault(_template_of(name), [])
        if name not in known:
            known.append(name)
            del known[:-_KNOWN_PER_KIND]

    def pick(self, template: str, number: int) -> str:
        """A name for a template such as `orgs/*/datasets/*`; most numbers give one that is known."""
        if template == "orgs/*":
            return self.organization(number)
        known = self._known.get(template, [])
        if known and number % 8 != 7:
            return known[number % len(known)]
        if template == "orgs/*/*":
            return f"{self.organization(number)}/{_TASK_AREAS[number % len(_TASK_AREAS)]}"
        first, *rest = template.split("*")
        return (
            first
            + (self._org or _IDS[0])
            + "".join(f"{piece}{_IDS[number % len(_IDS)]}" for piece in rest[:-1])
            + rest[-1]
        )

    def organization(self, number: int) -> str:
        """The caller's own; across organizations, ones that may not exist."""
        return f"orgs/{self._org or _IDS[number % len(_IDS)]}"

    def like(self, field: str, number: int) -> str:
        """A known name that fits a field such as `dataset_version`: one whose kind is the field's last word."""
        kind = field.rpartition("_")[2].rstrip("s")
        fitting = [n for t, names in self._known.items() if t.split("/")[-2].startswith(kind) for n in names]
        return fitting[number % len(fitting)] if fitting and number % 8 != 7 else self.any(number)

    def any(self, number: int) -> str:
        """Some known name, for fields that do not say of what kind theirs is."""
        known = [name for names in self._known.values() for name in names]
        return known[number % len(known)] if known else f"{self.organization(number)}/datasets/one"


def _names_in(message: Message, depth: int) -> Iterator[str]:
    if depth == 0:
        return
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from (text for text in (value if field.is_repeated else [value]) if str(text).startswith("orgs/"))
        elif field.message_type is not None and not _is_map(field):
            for inner in value if field.is_repeated else [value]:
                yield from _names_in(inner, depth - 1)


def _template_of(name: str) -> str:
    """`orgs/*/datasets/*` of `orgs/acme/datasets/one`; `orgs/*/*/tasks/*` where a service stands between."""
    parts = name.split("/")
    if len(parts) % 2:
        return f"orgs/*/*/{parts[-2]}/*"
    return "/".join("*" if index % 2 else part for index, part in enumerate(parts))


def requests(method: MethodDescriptor, names: Names) -> st.SearchStrategy[bytes]:
    """Bodies for a method: half of them right, the others hostile or no message at all."""
    descriptor = method.input_type
    right = right_requests(method, names).map(lambda message: message.SerializeToString())
    hostile = st.builds(
        lambda body, wrong: body + b"".join(wrong), right, st.lists(wrong_fields(descriptor), min_size=1, max_size=3)
    )
    chosen = st.integers(0, 9)
    return chosen.flatmap(lambda n: right if n < 5 else hostile if n < 8 else _mutated(right) if n < 9 else _garbage())


def right_requests(method: MethodDescriptor, names: Names) -> st.SearchStrategy[Message]:
    """Requests that obey the rules, and the rules between fields that no option can say."""
    paths = sorted({path for field in method.input_type.fields for path in _fields_below(field)}) or ["*"]
    named = _NAMED.findall(str(method.GetOptions()))

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        request: Any = draw(messages(method.input_type, names))
        for resource, template in named:
            if resource in request.DESCRIPTOR.fields_by_name and request.HasField(resource):
                getattr(request, resource).name = names.pick(template, draw(st.integers(0, 63)))
        fields = request.DESCRIPTOR.fields_by_name
        if "update_mask" in fields and request.HasField("update_mask"):
            del request.update_mask.paths[:]
            request.update_mask.paths.extend(draw(st.lists(st.sampled_from(paths), max_size=3)))
        if {"data", "sha256"} <= set(fields) and draw(st.integers(0, 3)):
            request.offset = 0
            request.sha256 = hashlib.sha256(request.data).hexdigest()
        return request

    return build()


def _fields_below(field: FieldDescriptor) -> list[str]:
    if field.message_type is None or field.message_type.file.package.startswith("google."):
        return []
    return [inner.name for inner in field.message_type.fields]


def messages(descriptor: Descriptor, names: Names, depth: int = _DEPTH) -> st.SearchStrategy[Message]:
    """Messages that obey the rules of their fields."""

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        message = GetMessageClass(descriptor)()
        taken: set[str] = set()
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and oneof.name in taken:
                continue
            rules = rules_of(field)
            if not _needed(field, rules) and draw(st.integers(0, 3)) == 0:
                continue
            if field.message_type is not None and depth == 0:
                continue
            _put(draw, message, field, rules, names, depth)
            if oneof is not None:
                taken.add(oneof.name)
        return message

    return build()


def rules_of(field: FieldDescriptor) -> Any:
    """The protovalidate rules of a field."""
    return field.GetOptions().Extensions[validate_pb2.field]  # type: ignore[index]


def _needed(field: FieldDescriptor, rules: Any) -> bool:
    pattern = rules.string.pattern
    return rules.required or rules.string.min_len > 0 or pattern.startswith("^orgs/")


def _put(draw: st.DrawFn, message: Any, field: FieldDescriptor, rules: Any, names: Names, depth: int) -> None:
    if _is_map(field):
        entry: Any = field.message_type
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        for _ in range(draw(st.integers(0, 2))):
            target = getattr(message, field.name)
            at = draw(_scalar(key, rules.map.keys, names))
            if value.message_type is not None:
                target[at].CopyFrom(draw(messages(value.message_type, names, depth - 1)))
            else:
                target[at] = draw(_scalar(value, rules.map.values, names))
    elif field.is_repeated:
        least = rules.repeated.min_items
        for _ in range(draw(st.integers(least, max(least, 2)))):
            target = getattr(message, field.name)
            if field.message_type is not None:
                target.add().CopyFrom(draw(messages(field.message_type, names, depth - 1)))
            else:
                target.append(draw(_scalar(field, rules.repeated.items, names)))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(_well_known(field.message_type, names, depth)))
    else:
        setattr(message, field.name, draw(_scalar(field, rules, names)))


def _well_known(descriptor: Descriptor, names: Names, depth: int) -> st.SearchStrategy[Message]:
    make = GetMessageClass(descriptor)
    if descriptor.full_name == "google.protobuf.Timestamp":
        return st.builds(
            lambda s, n: make(seconds=s, nanos=n), st.integers(0, 4_000_000_000), st.integers(0, 999_999_999)
        )
    if descriptor.full_name == "google.protobuf.Duration":
        return st.builds(lambda s, n: make(seconds=s, nanos=n), st.integers(0, 100_000), st.integers(0, 999_999_999))
    if descriptor.full_name == "google.protobuf.FieldMask":
        paths = st.sampled_from(("display_name", "labels", "description", "*", "name", "spec", "no.such", ""))
        return st.lists(paths, max_size=2).map(lambda chosen: make(paths=chosen))
    return messages(descriptor, names, depth - 1)


def _scalar(field: FieldDescriptor, rules: Any, names: Names) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return st.sampled_from([value.number for value in field.enum_type.values])
    if kind in _BITS:
        return _integer(field, rules)
    if kind in _FLOATS:
        return _float(rules.double if rules.HasField("double") else rules.float)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.binary(max_size=64), st.sampled_from((b'{"text": "a line"}\n', b"a,b\n1,2\n")))
    return _text(field.name, rules.string, names)


def _integer(field: FieldDescriptor, rules: Any) -> st.SearchStrategy[int]:
    kind = {v: k for k, v in FieldDescriptor.__dict__.items() if k.startswith("CPPTYPE_")}[field.cpp_type]
    limits = getattr(rules, kind.removeprefix("CPPTYPE_").lower())
    bits = _BITS[field.cpp_type]
    least = 0 if field.cpp_type in _UNSIGNED else -(1 << (bits - 1))
    most = (1 << (bits if field.cpp_type in _UNSIGNED else bits - 1)) - 1
    least = limits.gte if limits.HasField("gte") else limits.gt + 1 if limits.HasField("gt") else least
    most = limits.lte if limits.HasField("lte") else limits.lt - 1 if limits.HasField("lt") else most
    small = st.integers(max(least, -2), min(most, 100)) if max(least, -2) <= min(most, 100) else st.just(least)
    return st.one_of(small, small, st.integers(least, most), st.sampled_from((least, most)))


def _float(rules: Any) -> st.SearchStrategy[float]:
    least = rules.gte if rules.HasField("gte") else rules.gt if rules.HasField("gt") else -1e6
    most = rules.lte if rules.HasField("lte") else rules.lt if rules.HasField("lt") else 1e6
    return st.floats(least, most, exclude_min=rules.HasField("gt"), exclude_max=rules.HasField("lt"))


def _text(name: str, rules: Any, names: Names) -> st.SearchStrategy[str]:
    number = st.integers(0, 63)
    pattern: str = rules.pattern
    if name in ("etag", "page_token"):
        return st.sampled_from(("", "", "", "1", "AAAA"))
    if getattr(rules, "in"):
        return st.sampled_from(list(getattr(rules, "in")))
    if pattern.startswith("^orgs/"):
        # No character class of a name has a slash in it.
        segments = pattern.strip("^$").split("/")
        template = "/".join(part if part.isalpha() else "*" for part in segments)
        allowed = re.compile(pattern)
        named = number.map(lambda n: names.pick(template, n))
        return st.builds(lambda known, any_: known if allowed.search(known) else any_, named, _matching(pattern))
    if name.endswith("_id") and pattern and name != "request_id":
        return st.one_of(st.sampled_from(_IDS), _matching(pattern))
    if pattern:
        return _matching(pattern).filter(lambda text: len(text) <= (rules.max_len or 1 << 20))
    least, most = rules.min_len, min(rules.max_len or 40, 40)
    words = st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=max(least, most))
    simple = st.sampled_from(("one", "two", "text", "a b")).filter(lambda text: least <= len(text) <= most)
    known = number.map(lambda n: names.like(name, n))
    return st.one_of(known, known, simple, words) if rules.max_len == _NAME_LENGTH else st.one_of(simple, words)


@cache
def _matching(pattern: str) -> st.SearchStrategy[str]:
    bare = pattern.removeprefix("^").removesuffix("$")
    return st.from_regex(bare, fullmatch=True, alphabet=st.characters(exclude_categories=["Cs"]))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def wrong_fields(descriptor: Descriptor, depth: int = 6) -> st.SearchStrategy[bytes]:
    """One field in wire format, somewhere in the message or below it, with a value that it should not have."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        if not descriptor.fields or draw(st.integers(0, 19)) == 0:
            return draw(_unknown_fields())
        field = draw(st.sampled_from(list(descriptor.fields)))
        if field.message_type is not None and _is_map(field) and draw(st.booleans()):
            pair = draw(wrong_fields(field.message_type, 1))
            return _chunk(field.number, pair) * 2
        if field.message_type is not None and depth > 0 and draw(st.integers(0, 3)):
            return _chunk(field.number, draw(wrong_fields(field.message_type, depth - 1)))
        return draw(_hostile_value(field))

    return build()


def _hostile_value(field: FieldDescriptor) -> st.SearchStrategy[bytes]:
    number = field.number
    integers = st.sampled_from(_HOSTILE_INTEGERS).map(lambda value: _tag(number, _VARINT) + _varint(value))
    floats = st.sampled_from(_HOSTILE_FLOATS).map(lambda value: _tag(number, _FIXED64) + struct.pack("<d", value))
    texts = st.sampled_from(HOSTILE_TEXTS).map(lambda value: _chunk(number, value.encode()))
    raw = st.sampled_from(_HOSTILE_BYTES).map(lambda value: _chunk(number, value))
    many = st.sampled_from((b"", b"a", b"\x0a\x00")).map(lambda value: _chunk(number, value) * 3000)
    if field.cpp_type in _FLOATS:
        own = floats
        if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
            own = st.sampled_from(_HOSTILE_FLOATS[:4]).map(lambda v: _tag(number, _FIXED32) + struct.pack("<f", v))
    elif field.message_type is not None:
        own = st.one_of(raw, _nested(field))
    elif field.type == FieldDescriptor.TYPE_STRING:
        own = st.one_of(*[texts] * 7, raw)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        own = st.one_of(texts, raw)
    else:
        own = integers
    others = st.one_of(integers, floats, texts, raw)
    usual = [own] * 8
    return st.one_of(*usual, many, others) if field.is_repeated else st.one_of(*usual, others)


def _nested(field: FieldDescriptor) -> st.SearchStrategy[bytes]:
    """The field in itself, deeper than any parser goes along."""

    def wrap(levels: int) -> bytes:
        body = b""
        for _ in range(levels):
            body = _chunk(field.number, body)
        return body

    return st.sampled_from((1, 20, 99, 3000)).map(wrap)


def _unknown_fields() -> st.SearchStrategy[bytes]:
    unknown = st.sampled_from((15_000, _HIGHEST_FIELD))
    return st.one_of(
        unknown.map(lambda number: _chunk(number, b"unknown")),
        unknown.map(lambda number: _tag(number, _VARINT) + _varint(-1)),
        unknown.map(lambda number: _tag(number, _START_GROUP)),
        st.just(_varint(0)),
    )


def _mutated(right: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A right body with some bytes changed, cut off, put in or repeated."""

    def change(body: bytes, steps: list[tuple[str, int, int]]) -> bytes:
        for kind, position, value in steps:
            at = position % (len(body) + 1)
            edits: dict[str, Callable[[], bytes]] = {
                "set": lambda at=at, value=value, body=body: body[:at] + bytes((value,)) + body[at + 1 :],
                "cut": lambda at=at, body=body: body[:at],
                "insert": lambda at=at, value=value, body=body: body[:at] + bytes((value,)) + body[at:],
                "repeat": lambda at=at, body=body: body[:at] + body,
            }
            body = edits[kind]()
        return body

    step = st.tuples(
        st.sampled_from(("set", "set", "cut", "insert", "repeat")), st.integers(0, 4000), st.integers(0, 255)
    )
    return st.builds(change, right, st.lists(step, min_size=1, max_size=4))


def _garbage() -> st.SearchStrategy[bytes]:
    return st.one_of(st.just(b""), st.binary(max_size=200), st.just(b"\xff" * 2000), st.just(b'{"name": "json"}'))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _chunk(number: int, body: bytes) -> bytes:
    return _tag(number, _LENGTH) + _varint(len(body)) + body
