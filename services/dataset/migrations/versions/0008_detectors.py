"""Detectors."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, SmallInteger, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_resource_table

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    create_resource_table(
        op,
        "detectors",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("kind", SmallInteger, nullable=False),
        Column("manifest_digest", Text, nullable=False),
        Column("byte_count", BigInteger, nullable=False),
        Column("card", JSONB, nullable=False),
        Column("task", Text, nullable=False),
    )
