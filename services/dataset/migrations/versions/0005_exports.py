"""Exports of versions."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_resource_table
from libs.common.db.tables import time_type

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    create_resource_table(
        op,
        "exports",
        Column("expire_time", time_type(), nullable=False),
        Column("format", Text, nullable=False),
        Column("choices", Text, nullable=False),
        Column("files", JSONB, nullable=False),
        Column("manifest_digest", Text, nullable=False),
        Column("report", JSONB, nullable=False),
        Column("task", Text, nullable=False),
    )
    op.execute("CREATE INDEX ix_exports_expire_time ON exports (expire_time)")
