"""Parts of entities that a test does not care about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from libs.common.ids import uuid7

THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def resource_fields(name: str, **more: Any) -> dict[str, Any]:
    """Standard fields of a resource with this name."""
    return {"uid": uuid7(), "name": name, "create_time": THEN, "update_time": THEN, "creator": "users/alice", **more}
