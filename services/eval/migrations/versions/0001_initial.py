"""The first schema of evaluation."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_infrastructure, create_resource_table
from libs.common.tasks.tables import create_task_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    create_task_tables(op)
    create_resource_table(
        op,
        "evaluations",
        Column("display_name", Text, nullable=False),
        Column("model_version", Text, nullable=False),
        Column("dataset_version", Text, nullable=False),
        Column("baseline_version", Text, nullable=False),
        Column("spec", JSONB, nullable=False),
        Column("task", Text, nullable=False),
        Column("model_digest", Text, nullable=False),
        Column("report", JSONB, nullable=False),
        Column("samples_digest", Text, nullable=False),
        Column("gate_state", Text, nullable=False),
        Column("traceparent", Text, nullable=False),
    )
    op.execute("CREATE INDEX ix_evaluations_gate_pending ON evaluations (uid) WHERE gate_state = 'PENDING'")
