"""Times and durations in requests that are none: protobuf carries any pair of integers as a Timestamp.

The rules of protovalidate look at times only where a field asks for it; a handler that turns a wrong one into a
`datetime` would fail. What is valid is written in google/protobuf/timestamp.proto and duration.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
_LONGEST_SECONDS = 315_576_000_000
_NANOS = 1_000_000_000

Violations = list[tuple[str, str]]


def _is_time(value: Any) -> bool:
    return _FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < _NANOS


def _is_duration(value: Any) -> bool:
    fits = abs(value.seconds) <= _LONGEST_SECONDS and abs(value.nanos) < _NANOS
    return fits and (value.seconds == 0 or value.nanos == 0 or (value.seconds < 0) == (value.nanos < 0))


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "google.protobuf.Timestamp": (_is_time, "is no time from the year 1 to 9999 with 0 to 999,999,999 nanoseconds"),
    "google.protobuf.Duration": (_is_duration, "is no duration of at most 10,000 years with one sign"),
}


def time_checker(request: Any) -> Callable[[Message], Violations] | None:
    """Compiles a look at every time and duration that a request can hold.

    Returns None for requests that can hold none, so that they pay nothing; else a function that gives the (field,
    description) pairs at fault.
    """
    holders = _holders(request, {})
    if request.full_name not in holders:
        return None
    return lambda message: list(_wrong(message, holders, ""))


def _holders(descriptor: Descriptor, seen: dict[str, list[FieldDescriptor]]) -> dict[str, list[FieldDescriptor]]:
    """For each message type below (and with) this one that can hold a time: the fields that lead to it."""
    reachable: dict[str, Descriptor] = {}

    def collect(of: Descriptor) -> None:
        if of.full_name in reachable:
            return
        reachable[of.full_name] = of
        for field in of.fields:
            if field.message_type is not None and field.message_type.full_name not in _CHECKS:
                collect(field.message_type)

    collect(descriptor)
    grows = True
    while grows:
        grows = False
        for name, of in reachable.items():
            leading = [f for f in of.fields if f.message_type is not None and _leads(f.message_type, seen)]
            if leading and len(leading) != len(seen.get(name, ())):
                seen[name] = leading
                grows = True
    return seen


def _leads(descriptor: Descriptor, holders: dict[str, list[FieldDescriptor]]) -> bool:
    return descriptor.full_name in _CHECKS or descriptor.full_name in holders


def _wrong(message: Any, holders: dict[str, list[FieldDescriptor]], prefix: str) -> Iterator[tuple[str, str]]:
    check = _CHECKS.get(message.DESCRIPTOR.full_name)
    if check is not None:
        is_valid, description = check
        if not is_valid(message):
            yield prefix, description
        return
    for field in holders.get(message.DESCRIPTOR.full_name, ()):
        path = f"{prefix}.{field.name}" if prefix else field.name
        for inner_path, inner in _values(message, field, path):
            yield from _wrong(inner, holders, inner_path)


def _values(message: Any, field: FieldDescriptor, path: str) -> Iterator[tuple[str, Any]]:
    value = getattr(message, field.name)
    if not field.is_repeated:
        if message.HasField(field.name):
            yield path, value
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from ((f"{path}[{key}]", value[key]) for key in value)
    else:
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))
