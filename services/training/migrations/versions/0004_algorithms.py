"""The algorithm catalogue, and trainings of its entries."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_resource_table

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    create_resource_table(
        op,
        "algorithms",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("visibility", SmallInteger, nullable=False),
        Column("version_count", Integer, nullable=False),
    )
    create_resource_table(
        op,
        "algorithm_versions",
        Column("base_version", Text, nullable=False),
        Column("parameters", JSONB, nullable=False),
        Column("fixed", JSONB, nullable=False),
    )
    for table in ("trainings", "training_runs"):
        op.add_column(table, Column("algorithm_version", Text, nullable=False, server_default=text("''")))
        op.add_column(table, Column("parameters", JSONB, nullable=False, server_default=text("'{}'")))
    op.add_column("trainings", Column("task", Text, nullable=False, server_default=text("''")))
