"""Quotas of storage, and an index for forgetting what was settled long ago."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Text

from libs.common.db.infrastructure import enable_row_level_security

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("quotas", Column("storage_bytes", BigInteger))
    for name in ("storage_bytes", "kept_bytes"):
        op.add_column("quota_reservations", Column(name, BigInteger, nullable=False, server_default="0"))
    op.execute(
        "CREATE INDEX ix_quota_reservations_done ON quota_reservations (org, renew_time) "
        "WHERE state != 'HELD' AND kept_bytes = 0"
    )
    op.create_table(
        "quota_storage",
        Column("org", Text, primary_key=True),
        Column("scope", Text, primary_key=True),
        Column("kept_bytes", BigInteger, nullable=False),
    )
    enable_row_level_security(op, "quota_storage")
