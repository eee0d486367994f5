"""What runs cost and were to cost, how fast workers compute, and the room of tasks in identity's ledger."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, DateTime, Float, Integer, text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.tasks import add_quota_to_tasks

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    add_quota_to_tasks(op)
    for name in ("estimate", "actual"):
        op.add_column("training_runs", Column(name, JSONB, nullable=False, server_default=text("'{}'::jsonb")))
    op.create_table(
        "machine_rates",
        Column("threads", Integer, primary_key=True),
        Column("operations", Float, nullable=False),
        Column("bandwidth", Float, nullable=False),
        Column("call_seconds", Float, nullable=False),
        Column("update_time", DateTime(timezone=True), nullable=False),
    )
