"""Quotas, what jobs reserve of them, and what was used in each month."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, Float, Identity, Text
from sqlalchemy.dialects.postgresql import ARRAY

from libs.common.db.infrastructure import create_resource_table, enable_row_level_security

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_resource_table(
        op,
        "quotas",
        Column("scope", Text, nullable=False),
        Column("cpus", Float),
        Column("cpu_hours", Float),
        Column("gpus", Float),
        Column("gpu_hours", Float),
        Column("memory_bytes", BigInteger),
    )
    op.execute("CREATE UNIQUE INDEX uq_quotas_scope ON quotas (scope) WHERE delete_time IS NULL")
    op.create_table(
        "quota_reservations",
        Column("org", Text, primary_key=True),
        Column("id", Text, primary_key=True),
        Column("number", BigInteger, Identity(always=True), nullable=False),
        Column("task", Text, nullable=False),
        Column("target", Text, nullable=False),
        Column("subject", Text, nullable=False),
        Column("scopes", ARRAY(Text), nullable=False),
        Column("cpus", Float, nullable=False),
        Column("gpus", Float, nullable=False),
        Column("memory_bytes", BigInteger, nullable=False),
        Column("seconds", Float, nullable=False),
        Column("state", Text, nullable=False),
        Column("waiting_for", Text, nullable=False),
        Column("ask_time", DateTime(timezone=True), nullable=False),
        Column("renew_time", DateTime(timezone=True), nullable=False),
        Column("start_time", DateTime(timezone=True)),
        Column("booked_time", DateTime(timezone=True)),
        Column("end_time", DateTime(timezone=True)),
        Column("cpu_seconds", Float, nullable=False),
        Column("gpu_seconds", Float, nullable=False),
    )
    op.execute(
        "CREATE INDEX ix_quota_reservations_live ON quota_reservations (org, number) WHERE state IN ('WAITING', 'HELD')"
    )
    op.execute("CREATE INDEX ix_quota_reservations_org_number ON quota_reservations (org, number DESC)")
    enable_row_level_security(op, "quota_reservations")
    op.create_table(
        "quota_months",
        Column("org", Text, primary_key=True),
        Column("scope", Text, primary_key=True),
        Column("month", Text, primary_key=True),
        Column("cpu_seconds", Float, nullable=False),
        Column("gpu_seconds", Float, nullable=False),
    )
    enable_row_level_security(op, "quota_months")
