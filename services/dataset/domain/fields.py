"""Reading what people wrote: values of YAML, and what is said about those that are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

# The recipes of augmentation take it from here.


def as_list(value: object) -> list[object] | None:
    """The value, if it is a list."""
    return cast("list[object]", value) if isinstance(value, list) else None


def as_mapping(value: object) -> Mapping[object, object] | None:
    """The value, if it is a mapping."""
    return cast("Mapping[object, object]", value) if isinstance(value, Mapping) else None
