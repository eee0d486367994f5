"""The standard fields of a resource, to its message and back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeVar

from argosy.common.v1 import resource_pb2
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.common.domain import Parent, Resource, inherit_secrecy

M = TypeVar("M", bound=Message)

_TEXTS = ("name", "uid", "etag", "creator")
_TIMES = ("create_time", "update_time", "delete_time")


def to_proto(resource: Resource, message: M) -> M:
    """Sets the standard fields that the message has, and returns the message.

    Args:
        resource: what is shown.
        message: the message of its kind, with its other fields set by the caller.

    Raises:
        ValueError: the state is not one of the message's states.
    """
    fields = message.DESCRIPTOR.fields_by_name
    for field in _TEXTS:
        if field in fields:
            setattr(message, field, getattr(resource, field))
    for field in _TIMES:
        moment: datetime | None = getattr(resource, field)
        if field in fields and moment is not None:
            getattr(message, field).CopyFrom(timestamp(moment))
    if "labels" in fields:
        message.labels.update(resource.labels)  # type: ignore[attr-defined]
    if "secrecy" in fields:
        message.secrecy = int(resource.secrecy)  # type: ignore[attr-defined]
    if "lineage" in fields and resource.lineage:
        message.lineage.CopyFrom(lineage_to_proto(resource.lineage))  # type: ignore[attr-defined]
    if "state" in fields and resource.state and fields["state"].enum_type is not None:
        message.state = _state_number(fields["state"].enum_type, resource.state)  # type: ignore[attr-defined]
    return message


def from_proto(message: Message) -> dict[str, Any]:
    """The standard fields that a caller may set, as keyword arguments of an entity: labels, secrecy, lineage.

    Who says nothing about secrecy gets `INTERNAL`.
    """
    fields = message.DESCRIPTOR.fields_by_name
    result: dict[str, Any] = {}
    if "labels" in fields:
        result["labels"] = dict(message.labels)  # type: ignore[attr-defined]
    if "secrecy" in fields:
        result["secrecy"] = inherit_secrecy(message.secrecy)  # type: ignore[attr-defined]
    if "lineage" in fields:
        result["lineage"] = lineage_from_proto(message.lineage)  # type: ignore[attr-defined]
    return result


def timestamp(moment: datetime) -> Timestamp:
    """A moment as a message."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def lineage_to_proto(lineage: Iterable[Parent]) -> resource_pb2.Lineage:
    """Parents as a message."""
    return resource_pb2.Lineage(
        parents=[resource_pb2.Parent(name=p.name, digest=p.digest, relation=p.relation) for p in lineage]
    )


def lineage_from_proto(lineage: resource_pb2.Lineage) -> list[Parent]:
    """Parents from a message."""
    return [Parent(parent.name, parent.digest, parent.relation) for parent in lineage.parents]


def _state_number(states: EnumDescriptor, state: str) -> int:
    """States are stored by their name without the prefix of the enum: `QUEUED` of `STATE_QUEUED`."""
    for value in states.values:
        if value.name == state or value.name.endswith(f"_{state}"):
            return value.number
    raise ValueError(f"{state!r} is no value of {states.full_name}")
