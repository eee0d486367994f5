"""Metrics and events of runs, their states, and what lists of runs are filtered and sorted by."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, Float, Identity, Integer, LargeBinary, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import enable_row_level_security
from libs.common.tasks import add_pause_to_tasks

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    add_pause_to_tasks(op)
    op.create_table(
        "run_metrics",
        Column("run_uid", Uuid(as_uuid=False), primary_key=True),
        Column("key", Text, primary_key=True),
        Column("org", Text, nullable=False),
        Column("point_count", BigInteger, nullable=False),
        Column("segment_count", BigInteger, nullable=False),
        Column("open_count", Integer, nullable=False),
        Column("first_step", BigInteger, nullable=False),
        Column("last_step", BigInteger, nullable=False),
        Column("min_value", Float),
        Column("max_value", Float),
        Column("last_value", Float, nullable=False),
        Column("last_time", DateTime(timezone=True), nullable=False),
    )
    enable_row_level_security(op, "run_metrics")
    op.create_table(
        "run_metric_segments",
        Column("run_uid", Uuid(as_uuid=False), primary_key=True),
        Column("key", Text, primary_key=True),
        Column("number", BigInteger, primary_key=True),
        Column("org", Text, nullable=False),
        Column("point_count", Integer, nullable=False),
        Column("first_step", BigInteger, nullable=False),
        Column("last_step", BigInteger, nullable=False),
        Column("steps", LargeBinary, nullable=False),
        Column("times", LargeBinary, nullable=False),
        Column("points", LargeBinary, nullable=False),
    )
    # They are compressed already; PostgreSQL would only try in vain.
    for column in ("steps", "times", "points"):
        op.execute(f"ALTER TABLE run_metric_segments ALTER COLUMN {column} SET STORAGE EXTERNAL")
    enable_row_level_security(op, "run_metric_segments")
    op.create_table(
        "run_events",
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("org", Text, nullable=False),
        Column("run_uid", Uuid(as_uuid=False), nullable=False),
        Column("kind", Text, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("message", Text, nullable=False),
        Column("details", JSONB, nullable=False),
    )
    op.create_index("ix_run_events_run_uid_id", "run_events", ["run_uid", "id"])
    enable_row_level_security(op, "run_events")
    op.create_table(
        "run_terms",
        Column("run_uid", Uuid(as_uuid=False), primary_key=True),
        Column("term", BigInteger, primary_key=True),
        Column("value", Float, nullable=False),
    )
    op.create_index("ix_run_terms_term_value_run_uid", "run_terms", ["term", "value", "run_uid"])
    # Runs from before have the states of their tasks.
    op.execute("UPDATE training_runs SET state = tasks.state FROM tasks WHERE tasks.name = training_runs.task")
