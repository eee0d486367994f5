"""Checks of leakage."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_resource_table

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    create_resource_table(
        op, "leakage_checks", Column("figures", JSONB, nullable=False), Column("task", Text, nullable=False)
    )
