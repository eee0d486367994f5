"""Update masks, as AIP-134 has them."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.common.errors import invalid_field

# A client sends back what it read: fields that only the service sets are passed over when no mask names them.
_MASK_FIELD = "update_mask"


def fields_to_change(resource: Message, mask: FieldMask, mutable: Collection[str]) -> list[str]:
    """Which fields an update changes: those of the mask, or without a mask those that are set and mutable.

    Args:
        resource: as it came in the request.
        mask: `update_mask` of the request; `*` stands for every mutable field.
        mutable: fields of the resource that callers may change.

    Raises:
        ArgosyError: INVALID_FIELD for a path that is no field, or one that callers may not change.
    """
    if list(mask.paths) == ["*"]:
        return sorted(mutable)
    known = resource.DESCRIPTOR.fields_by_name
    for path in mask.paths:
        if path not in known:
            raise invalid_field(_MASK_FIELD, f"{path} is no field of {resource.DESCRIPTOR.name}")
        if path not in mutable:
            raise invalid_field(_MASK_FIELD, f"{path} cannot be changed")
    if mask.paths:
        return list(dict.fromkeys(mask.paths))
    return [field.name for field, _ in resource.ListFields() if field.name in mutable]
