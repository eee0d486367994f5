"""Runs that programs elsewhere report, with their tags and files."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Text, Uuid, false
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import enable_row_level_security

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    for table in ("trainings", "training_runs"):
        op.add_column(table, Column("outside", Boolean, nullable=False, server_default=false()))
    op.create_table(
        "run_records",
        Column("run_uid", Uuid(as_uuid=False), primary_key=True),
        Column("org", Text, nullable=False),
        Column("display_name", Text, nullable=False),
        Column("tags", JSONB, nullable=False),
        Column("start_time", DateTime(timezone=True), nullable=False),
        Column("end_time", DateTime(timezone=True)),
    )
    enable_row_level_security(op, "run_records")
    op.create_table(
        "run_artifacts",
        Column("run_uid", Uuid(as_uuid=False), primary_key=True),
        Column("path", Text, primary_key=True),
        Column("upload_id", Text, primary_key=True),
        Column("org", Text, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("parts", JSONB, nullable=False),
        Column("complete", Boolean, nullable=False),
        Column("create_time", DateTime(timezone=True), nullable=False),
    )
    enable_row_level_security(op, "run_artifacts")
